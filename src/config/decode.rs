//! Decode: typed values out of a tree, noting what does not fit and going on.
//!
//! Every reader answers `None` after it has noted why, so a caller takes what it can get.

use std::{net::SocketAddr, ops::RangeInclusive, sync::Arc, time::Duration};

use super::{
    report::{Complaint, Place, Report, quoted, suggestion},
    units,
    words::MODES,
    yaml::{Entry, Mark, Node, Value},
};
use crate::resilience::Mode;

/// Reads the documents of one file.
#[derive(Debug)]
pub(super) struct Decoder<'a> {
    /// The file, as problems name it.
    pub(super) file: Arc<std::path::Path>,
    /// Where problems go.
    pub(super) report: &'a mut Report,
    /// Where a document is that does not say.
    pub(super) namespace: &'a str,
    /// The zone of this workload, where it is known.
    pub(super) zone: Option<&'a str>,
}

/// The keys a map may have.
#[derive(Debug)]
pub(super) struct Shape {
    /// The map, as a person would call it.
    pub(super) name: &'static str,
    /// Keys that mean something.
    pub(super) known: &'static [&'static str],
    /// Of those, the ones that must be there, each with an example.
    pub(super) required: &'static [(&'static str, &'static str)],
    /// Keys that mean something elsewhere or later, and nothing here yet.
    pub(super) later: &'static [&'static str],
}

/// A map whose keys have been checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'n> {
    entries: &'n [Entry],
}

impl<'n> Fields<'n> {
    /// The value of `key`.
    pub(super) fn get(self, key: &str) -> Option<&'n Node> {
        self.entries.iter().find(|it| it.key == key).map(|it| &it.value)
    }

    /// Makes `target` what `read` finds in the value of `key`; it stays where that is nothing.
    pub(super) fn read<T>(
        self,
        key: &str,
        target: &mut T,
        read: impl FnOnce(&'n Node) -> Option<T>,
    ) {
        if let Some(value) = self.get(key).and_then(read) {
            *target = value;
        }
    }
}

impl Decoder<'_> {
    /// The place of `at` in this file.
    pub(super) fn place(&self, at: Mark) -> Place {
        Place { file: Arc::clone(&self.file), line: at.line, column: at.column }
    }

    /// Notes something that must be corrected.
    pub(super) fn error(&mut self, at: Mark, message: impl Into<String>, hint: impl Into<String>) {
        self.report.error(self.place(at), Complaint::new(message, hint));
    }

    /// Notes something that is allowed and looks like a mistake.
    pub(super) fn warning(
        &mut self,
        at: Mark,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.report.warning(self.place(at), Complaint::new(message, hint));
    }

    /// The keys of a map, all of them among those of `shape`.
    pub(super) fn fields<'n>(&mut self, node: &'n Node, shape: &Shape) -> Option<Fields<'n>> {
        let entries = self.entries(node, shape.name)?;
        for Entry { at, key, .. } in entries {
            if shape.later.contains(&key.as_str()) {
                self.not_yet(*at, &format!("`{key}` of {}", shape.name));
            } else if !shape.known.contains(&key.as_str()) {
                let message = format!("unknown key {} in {}", quoted(key), shape.name);
                self.error(*at, message, suggestion(key, shape.known));
            }
        }
        let fields = Fields { entries };
        for (key, example) in shape.required {
            if fields.get(key).is_none() {
                let message = format!("{} has no `{key}`", shape.name);
                self.error(node.at, message, format!("add `{key}: {example}`"));
            }
        }
        Some(fields)
    }

    /// The entries of a map whose keys are names of something.
    pub(super) fn entries<'n>(&mut self, node: &'n Node, name: &str) -> Option<&'n [Entry]> {
        if let Value::Map(entries) = &node.value {
            return Some(entries);
        }
        self.mismatch(node, &format!("a map for {name}"), "write `key: value` pairs")
    }

    /// Says that something is part of the design and not of this version.
    pub(super) fn not_yet(&mut self, at: Mark, what: &str) {
        self.error(at, format!("not supported yet: {what}"), "remove it until a later version");
    }

    /// The items of a list that has between 1 and `max` of them; no more than those.
    pub(super) fn items<'n>(&mut self, node: &'n Node, max: usize) -> Option<&'n [Node]> {
        let Value::List(items) = &node.value else {
            return self.mismatch(node, "a list", "write `[a, b]`, or a line `- a` for each item");
        };
        if items.is_empty() {
            self.error(node.at, "the list is empty", "add an item, or remove the key");
        } else if max < items.len() {
            let message = format!("a list of {} items", items.len());
            self.error(node.at, message, format!("the most is {max}"));
        }
        Some(items.get(..max).unwrap_or(items))
    }

    /// Text that is not empty.
    pub(super) fn text<'n>(&mut self, node: &'n Node) -> Option<&'n str> {
        match &node.value {
            Value::Text(text) if !text.is_empty() => Some(text),
            Value::Text(_) => {
                self.error(node.at, "the text is empty", "write a value, or remove the key");
                None
            }
            Value::Number(_) | Value::Bool(_) => {
                self.mismatch(node, "text", "put quotes around it if it is meant as text")
            }
            Value::Null | Value::List(_) | Value::Map(_) => {
                self.mismatch(node, "text", "write one value")
            }
        }
    }

    /// Text that may be empty.
    pub(super) fn any_text<'n>(&mut self, node: &'n Node) -> Option<&'n str> {
        if let Value::Text(text) = &node.value { Some(text) } else { self.text(node) }
    }

    /// Text that is well formed; `what` names the form and `hint` shows it.
    pub(super) fn formed<'n>(
        &mut self,
        node: &'n Node,
        is_formed: fn(&str) -> bool,
        (what, hint): (&str, &str),
    ) -> Option<&'n str> {
        let text = self.text(node)?;
        if is_formed(text) {
            return Some(text);
        }
        self.error(node.at, format!("{} is not {what}", quoted(text)), hint);
        None
    }

    /// A label of DNS: what namespaces and Services are called.
    pub(super) fn label<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n str> {
        let hint = "use lower-case letters, digits and `-`, at most 63 of them";
        self.formed(node, units::is_label, (what, hint))
    }

    /// A whole number in `range`.
    pub(super) fn number(&mut self, node: &Node, range: RangeInclusive<u32>) -> Option<u32> {
        let hint = format!("write a whole number from {} to {}", range.start(), range.end());
        let Value::Number(text) = &node.value else {
            return self.mismatch(node, "a whole number", &hint);
        };
        let number = text.parse().ok().filter(|it| range.contains(it));
        if number.is_none() {
            self.error(node.at, format!("{} is not in the range", quoted(text)), hint);
        }
        number
    }

    /// A port.
    pub(super) fn port(&mut self, node: &Node) -> Option<u16> {
        self.number(node, 1..=65_535).and_then(|it| u16::try_from(it).ok())
    }

    /// An address with its port.
    pub(super) fn address(&mut self, node: &Node) -> Option<SocketAddr> {
        let text = self.text(node)?;
        match text.parse() {
            Ok(address) if SocketAddr::port(&address) != 0 => Some(address),
            _ => {
                let message = format!("{} is not an address and port", quoted(text));
                self.error(node.at, message, "write `10.0.0.7:8080` or `[fd00::7]:8080`");
                None
            }
        }
    }

    /// A duration above zero.
    pub(super) fn duration(&mut self, node: &Node) -> Option<Duration> {
        let (Value::Text(text) | Value::Number(text)) = &node.value else {
            return self.mismatch(node, "a duration", "write it as `250ms`, `2s` or `1h`");
        };
        match units::duration(text) {
            Ok(duration) => Some(duration),
            Err(complaint) => {
                self.report.error(self.place(node.at), complaint);
                None
            }
        }
    }

    /// A duration in `range`.
    pub(super) fn duration_in(
        &mut self,
        node: &Node,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let duration = self.duration(node)?;
        if range.contains(&duration) {
            return Some(duration);
        }
        let message = format!("duration `{}` is not in the range", units::written(duration));
        let [least, most] = [*range.start(), *range.end()].map(units::written);
        let hint = format!("write one from `{least}` to `{most}`");
        self.error(node.at, message, hint);
        None
    }

    /// Whole percents in `range`.
    pub(super) fn percent(&mut self, node: &Node, range: RangeInclusive<u32>) -> Option<u32> {
        let hint = format!("write a percentage from `{}%` to `{}%`", range.start(), range.end());
        let (Value::Text(text) | Value::Number(text)) = &node.value else {
            return self.mismatch(node, "a percentage", &hint);
        };
        match units::percent(text) {
            Ok(percent) if range.contains(&percent) => return Some(percent),
            Ok(_) => self.error(node.at, format!("{} is not in the range", quoted(text)), hint),
            Err(Complaint { message, .. }) => self.error(node.at, message, hint),
        }
        None
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, node: &Node) -> Option<bool> {
        match node.value {
            Value::Bool(flag) => Some(flag),
            Value::Null | Value::Number(_) | Value::Text(_) | Value::List(_) | Value::Map(_) => {
                self.mismatch(node, "`true` or `false`", "write one of the two")
            }
        }
    }

    /// What `read` makes of a value, or `off` where it is that word.
    pub(super) fn or_off<T>(
        &mut self,
        node: &Node,
        off: T,
        read: impl FnOnce(&mut Self, &Node) -> Option<T>,
    ) -> Option<T> {
        let (Value::Text(text) | Value::Number(text)) = &node.value else {
            return read(self, node);
        };
        match text.as_str() {
            "off" => Some(off),
            "0" | "0%" | "0s" | "0ms" => {
                self.error(node.at, format!("{} does not mean off", quoted(text)), "write `off`");
                None
            }
            _ => read(self, node),
        }
    }

    /// The `mode` of a rule; one that does not say is in force.
    pub(super) fn mode(&mut self, rule: Fields<'_>) -> Mode {
        rule.get("mode").and_then(|it| self.choice(it, &MODES)).unwrap_or_default()
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&mut self, node: &Node, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(node)?;
        if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*meaning);
        }
        let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        self.error(node.at, format!("unknown value {}", quoted(text)), suggestion(text, &known));
        None
    }

    fn mismatch<T>(&mut self, node: &Node, expected: &str, hint: &str) -> Option<T> {
        let found = match &node.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(flag) => format!("`{flag}`"),
            Value::Number(number) => format!("the number {}", quoted(number)),
            Value::Text(text) => quoted(text),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
        };
        self.error(node.at, format!("expected {expected}, found {found}"), hint);
        None
    }
}
