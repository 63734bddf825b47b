//! Report: everything that is wrong with the policy documents, each thing at its place.
//!
//! A person corrects a file once, not error by error: whoever finds something notes it in
//! a [`Report`] and goes on as far as it can.

use std::{fmt, path::Path, sync::Arc};

/// The most of a value that a message repeats, in characters.
const QUOTED_CHARS_MAX: usize = 60;

/// The most problems one load reports; the file at hand is hopeless long before.
const PROBLEMS_MAX: usize = 1_000;

/// A place in a file: `line` and `column` count from 1, in characters; a line of 0 is the
/// file as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file, below the path that was asked for.
    pub file: Arc<Path>,
    /// Counts from 1.
    pub line: usize,
    /// Counts from 1, in characters.
    pub column: usize,
}

/// One thing that is wrong, or that looks wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// What was expected and found.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

/// Everything that is wrong, by file and position; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors(Vec<Problem>);

/// What is wrong with one value, wherever it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// What was expected and found.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

/// What was found so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Errors {
    /// Each thing, by file and position.
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }

    /// The first `most` of them, a line and its hint each, and how many more there are.
    pub fn first(&self, most: usize) -> String {
        let mut lines: Vec<_> = self.0.iter().take(most).map(Problem::to_string).collect();
        if most < self.0.len() {
            lines.push(format!("and {} more", self.0.len() - most));
        }
        lines.join("\n")
    }
}

impl Complaint {
    /// A complaint with the way out of it.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }
}

impl Report {
    /// Notes something that must be corrected.
    pub(super) fn error(&mut self, place: Place, complaint: Complaint) {
        note(&mut self.errors, place, complaint);
    }

    /// Notes something that is allowed and looks like a mistake.
    pub(super) fn warning(&mut self, place: Place, complaint: Complaint) {
        note(&mut self.warnings, place, complaint);
    }

    /// Notes what another look at the same documents found besides.
    pub(super) fn add(&mut self, other: Self) {
        let Self { errors, warnings } = other;
        for (into, found) in [(&mut self.errors, errors), (&mut self.warnings, warnings)] {
            for it in found {
                if !into.contains(&it) {
                    into.push(it);
                }
            }
        }
    }

    /// The warnings, or everything that is wrong.
    pub(super) fn settle(mut self) -> Result<Vec<Problem>, Errors> {
        self.errors.sort_by(|a, b| a.place.cmp(&b.place));
        self.warnings.sort_by(|a, b| a.place.cmp(&b.place));
        if self.errors.is_empty() { Ok(self.warnings) } else { Err(Errors(self.errors)) }
    }
}

fn note(problems: &mut Vec<Problem>, place: Place, complaint: Complaint) {
    let Complaint { message, hint } = match problems.len() {
        ..PROBLEMS_MAX => complaint,
        PROBLEMS_MAX => Complaint::new(
            format!("more than {PROBLEMS_MAX} problems"),
            "correct the ones that are listed first",
        ),
        _ => return,
    };
    problems.push(Problem { place, message, hint });
}

/// `text` in backticks as a message repeats it: one line, and not too long.
pub(super) fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(QUOTED_CHARS_MAX).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    // Debug escapes control characters, so that a value cannot write lines of its own.
    format!("`{}`", shown.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'"))
}

/// The hint for a word that is none of `known`: the one it looks like, or all of them.
pub(super) fn suggestion(word: &str, known: &[&str]) -> String {
    let near = known
        .iter()
        .filter(|_| word.len() <= QUOTED_CHARS_MAX)
        .map(|it| (strsim::damerau_levenshtein(&word.to_lowercase(), &it.to_lowercase()), it))
        .min()
        .filter(|(distance, it)| *distance <= 1 + it.len() / 4);
    match near {
        Some((_, it)) => format!("did you mean `{it}`?"),
        None => format!("one of: {}", known.join(", ")),
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}", self.file.display()),
            _ => write!(f, "{}:{}:{}", self.file.display(), self.line, self.column),
        }
    }
}

/// A line with the place and the message, then one with the hint.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\nhint: {}", self.place, self.message, self.hint)
    }
}

/// One problem after the other.
impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_close_to_a_known_one_is_suggested_and_any_other_gets_the_list() {
        let known = ["LeastRequest", "Random"];
        assert_eq!(suggestion("leastrequests", &known), "did you mean `LeastRequest`?");
        assert_eq!(suggestion("ring", &known), "one of: LeastRequest, Random");
    }

    #[test]
    fn a_hopeless_file_does_not_fill_the_log() {
        let mut report = Report::default();
        for line in 1..=2 * PROBLEMS_MAX {
            let place = Place { file: Path::new("a").into(), line, column: 1 };
            report.error(place, Complaint::new("wrong", "right"));
        }
        let errors = report.settle().unwrap_err();
        assert_eq!(errors.problems().len(), PROBLEMS_MAX + 1);
        assert_eq!(errors.problems()[PROBLEMS_MAX].message, "more than 1000 problems");
    }

    #[test]
    fn a_value_in_a_message_is_one_short_line() {
        assert_eq!(quoted("a\n\"b\""), "`a\\n\"b\"`");
        assert_eq!(quoted(&"x".repeat(100)).chars().count(), QUOTED_CHARS_MAX + 3);
    }
}
