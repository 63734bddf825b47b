//! Log: events for an operator, on standard error, one a line.
//!
//! Messages are constant and values are fields, so that a line can be searched for. Times
//! are RFC 3339 in UTC. Requests are not logged here but by [`super::access_log`].

use std::str::FromStr;

use tracing_subscriber::{
    filter::{ParseError, Targets},
    fmt,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// What is logged when nothing is said: life-cycle, and whatever is degraded.
pub const DEFAULT_FILTER: &str = "info";

/// Why logging cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter does not parse.
    #[error("bad log filter `{filter}`\nhint: a level, or `module=level` separated by commas")]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: ParseError,
    },
    /// The process logs already.
    #[error("logging was begun twice\nhint: this is a bug in remora, please report it")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
    /// The format has another name.
    #[error("unknown log format `{0}`\nhint: `json` or `text`")]
    Format(String),
}

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// An object, for machines.
    #[default]
    Json,
    /// For people.
    Text,
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            other => Err(Error::Format(other.into())),
        }
    }
}

/// Begins to log to standard error. Once a process.
///
/// `filter` is a level or a list of `module=level`.
///
/// # Errors
///
/// When the filter does not parse, or the process logs already.
pub fn init(format: Format, filter: &str) -> Result<(), Error> {
    let filter: Targets =
        filter.parse().map_err(|source| Error::Filter { filter: filter.into(), source })?;
    let registry = tracing_subscriber::registry().with(filter);
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let begun = match format {
        Format::Json => registry.with(lines.json().flatten_event(true)).try_init(),
        Format::Text => registry.with(lines).try_init(),
    };
    begun.map_err(Error::Twice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_is_an_error_and_not_a_panic() {
        let error = init(Format::Json, "remora=loud").unwrap_err();
        assert!(error.to_string().starts_with("bad log filter `remora=loud`"), "{error}");
    }

    #[test]
    fn a_format_has_a_name() {
        assert_eq!("json".parse::<Format>().unwrap(), Format::default());
        assert_eq!("text".parse::<Format>().unwrap(), Format::Text);
        assert!("xml".parse::<Format>().is_err());
    }
}
