//! Metrics page: what a sidecar counts, as a scrape sees it.

use std::fmt;

/// A page in Prometheus' text format.
#[derive(Debug)]
pub(crate) struct Page {
    text: String,
}

impl Page {
    /// The page that `text` is.
    pub(crate) fn new(text: String) -> Self {
        Self { text }
    }

    /// The sum of the samples called `name` that have all of these labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let of_name =
            |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let has_labels = |line: &&str| {
            labels.iter().all(|(label, value)| line.contains(&format!("{label}=\"{value}\"")))
        };
        let samples = self.text.lines().filter(of_name).filter(has_labels);
        samples.map(|line| value(line).unwrap_or_else(|| panic!("no sample: {line}"))).sum()
    }

    /// How many local replies there were for `reason`, whatever the service.
    pub(crate) fn replies(&self, direction: &str, reason: &str) -> u64 {
        let labels = [("direction", direction), ("reason", reason)];
        self.sum("remora_local_replies_total", &labels)
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn value(sample: &str) -> Option<u64> {
    sample.rsplit(' ').next()?.parse().ok()
}
