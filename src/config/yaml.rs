//! YAML: a file as trees of values, each with its place.
//!
//! The documents are decoded from these trees and not by `serde`, because a deserializer
//! stops at the first thing that does not fit, and an operator wants to see all of them.
//! The reading is YAML 1.2 without its traps: a key comes once, there are no tags and no
//! merge keys, and what an alias repeats counts as if it were written out, so that a small
//! file cannot become a large tree.
//!
//! # Sources
//!
//! - YAML 1.2.2, section 10.3: how the core schema reads a plain scalar.
//!   <https://yaml.org/spec/1.2.2/#103-core-schema>

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span};

use super::report::{Complaint, quoted};

/// The most values one file may hold, aliases written out.
const NODES_MAX: usize = 100_000;

/// The deepest a value may stand; the documents need 8.
const DEPTH_MAX: usize = 32;

/// A position in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// Counts from 1.
    pub(super) line: usize,
    /// Counts from 1, in characters.
    pub(super) column: usize,
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub(super) at: Mark,
    pub(super) value: Value,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// Nothing: `key:`, `~` or `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number, as it was written.
    Number(String),
    /// Anything else that is one value, and everything in quotes.
    Text(String),
    List(Vec<Node>),
    /// By key, each key once, in the order written.
    Map(Vec<Entry>),
}

/// One key of a map and its value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) at: Mark,
    pub(super) key: String,
    pub(super) value: Node,
}

/// The documents of a file, and what is wrong with its form.
///
/// Documents without a value are left out; the ones before a syntax error are there.
pub(super) fn parse(bytes: &[u8]) -> (Vec<Node>, Vec<(Mark, Complaint)>) {
    let mut builder = Builder::default();
    match std::str::from_utf8(bytes) {
        Ok(text) => builder.read(text),
        Err(error) => {
            let good = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let good = String::from_utf8_lossy(good);
            let column = good.rsplit('\n').next().map_or(0, |it| it.chars().count()) + 1;
            let at = Mark { line: good.matches('\n').count() + 1, column };
            builder.wrong(at, "the file is not UTF-8 text", "save the file as UTF-8");
        }
    }
    (builder.documents, builder.wrong)
}

/// A tree that is being put together.
#[derive(Debug, Default)]
struct Builder {
    documents: Vec<Node>,
    wrong: Vec<(Mark, Complaint)>,
    /// The lists and maps that are open, outermost first.
    open: Vec<Open>,
    anchors: HashMap<usize, Anchor>,
    nodes: usize,
}

/// A list or map whose end was not seen yet.
#[derive(Debug)]
struct Open {
    at: Mark,
    /// 0 is none.
    anchor: usize,
    /// How many nodes there were when it began.
    nodes_before: usize,
    /// The deepest level below it.
    height: usize,
    inside: Inside,
}

#[derive(Debug)]
enum Inside {
    List(Vec<Node>),
    Map {
        entries: Vec<Entry>,
        seen: HashMap<String, Mark>,
        /// The key whose value comes next.
        key: Key,
    },
}

#[derive(Debug)]
enum Key {
    /// A key comes next.
    Awaited,
    Read(Mark, String),
    /// Wrong, and said so; its value is passed over.
    Bad,
}

/// What an alias repeats.
#[derive(Debug)]
struct Anchor {
    node: Node,
    nodes: usize,
    height: usize,
}

/// The file holds more than it may.
#[derive(Debug)]
struct TooMuch;

impl Builder {
    fn read(&mut self, text: &str) {
        let options = granit_parser::options! {
            flow_nesting_limit: DEPTH_MAX,
            block_nesting_limit: DEPTH_MAX,
        };
        for step in Parser::new_from_str_with_options(text, options) {
            match step {
                Ok((event, span)) => {
                    if self.event(event, mark(span)).is_err() {
                        return;
                    }
                }
                Err(error) => return self.syntax(&error),
            }
        }
    }

    fn syntax(&mut self, error: &ScanError) {
        let at = Mark { line: error.marker().line(), column: error.marker().col() + 1 };
        let message = format!("not valid YAML: {}", error.info());
        self.wrong(at, message, "check indentation, quotes and brackets just before this place");
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the parser's events may become more")]
    fn event(&mut self, event: Event<'_>, at: Mark) -> Result<(), TooMuch> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.no_tag(at, tag.is_some());
                let value = scalar(&text, style);
                self.counted(at, 1)?;
                self.attach(Node { at, value }, anchor, 1, 0)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.no_tag(at, tag.is_some());
                self.begin(at, anchor, Inside::List(Vec::new()))
            }
            Event::MappingStart(_, anchor, tag) => {
                self.no_tag(at, tag.is_some());
                let (entries, seen) = (Vec::new(), HashMap::new());
                self.begin(at, anchor, Inside::Map { entries, seen, key: Key::Awaited })
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(id) => self.alias(at, id),
            Event::DocumentEnd => {
                self.anchors.clear();
                Ok(())
            }
            Event::UnresolvedAlias(_) => {
                self.wrong(at, "this alias repeats nothing", "write the value out");
                self.attach(Node { at, value: Value::Null }, 0, 1, 0)
            }
            // Not part of a value, as long as the parser is not told to send more.
            _ => Ok(()),
        }
    }

    fn begin(&mut self, at: Mark, anchor: usize, inside: Inside) -> Result<(), TooMuch> {
        let nodes_before = self.nodes;
        self.counted(at, 1)?;
        self.open.push(Open { at, anchor, nodes_before, height: 0, inside });
        Ok(())
    }

    fn end(&mut self) -> Result<(), TooMuch> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        let value = match open.inside {
            Inside::List(items) => Value::List(items),
            Inside::Map { entries, .. } => Value::Map(entries),
        };
        let nodes = self.nodes - open.nodes_before;
        self.attach(Node { at: open.at, value }, open.anchor, nodes, open.height + 1)
    }

    fn alias(&mut self, at: Mark, id: usize) -> Result<(), TooMuch> {
        let Some(anchor) = self.anchors.get(&id) else {
            self.wrong(at, "this alias is inside of what it repeats", "write the value out");
            return self.attach(Node { at, value: Value::Null }, 0, 1, 0);
        };
        let (nodes, height) = (anchor.nodes, anchor.height);
        if DEPTH_MAX < self.open.len() + height {
            let message = format!("more than {DEPTH_MAX} levels, this alias written out");
            self.wrong(at, message, "write the value out");
            return Err(TooMuch);
        }
        // Counted before it is copied.
        self.counted(at, nodes)?;
        let Some(node) = self.anchors.get(&id).map(|it| it.node.clone()) else { return Ok(()) };
        self.attach(node, 0, nodes, height)
    }

    /// Puts a complete node where it belongs.
    fn attach(
        &mut self,
        node: Node,
        anchor: usize,
        nodes: usize,
        height: usize,
    ) -> Result<(), TooMuch> {
        if anchor != 0 {
            self.counted(node.at, nodes)?;
            self.anchors.insert(anchor, Anchor { node: node.clone(), nodes, height });
        }
        let Some(open) = self.open.last_mut() else {
            if node.value != Value::Null {
                self.documents.push(node);
            }
            return Ok(());
        };
        open.height = open.height.max(height);
        match &mut open.inside {
            Inside::List(items) => items.push(node),
            Inside::Map { entries, seen, key } => match std::mem::replace(key, Key::Awaited) {
                Key::Read(at, name) => entries.push(Entry { at, key: name, value: node }),
                Key::Bad => (),
                Key::Awaited => {
                    let checked = check_key(node, seen);
                    *key = checked.unwrap_or_else(|wrong| {
                        self.wrong.push(wrong);
                        Key::Bad
                    });
                }
            },
        }
        Ok(())
    }

    fn no_tag(&mut self, at: Mark, tagged: bool) {
        if tagged {
            self.wrong(at, "tags are not supported", "remove it; quotes make a value text");
        }
    }

    fn counted(&mut self, at: Mark, nodes: usize) -> Result<(), TooMuch> {
        self.nodes += nodes;
        if self.nodes <= NODES_MAX {
            return Ok(());
        }
        let message = format!("more than {NODES_MAX} values in one file, aliases written out");
        self.wrong(at, message, "split the file, or write less with aliases");
        Err(TooMuch)
    }

    fn wrong(&mut self, at: Mark, message: impl Into<String>, hint: &str) {
        self.wrong.push((at, Complaint::new(message, hint)));
    }
}

/// `node` as a key that was not in `seen`.
fn check_key(node: Node, seen: &mut HashMap<String, Mark>) -> Result<Key, (Mark, Complaint)> {
    let (at, name) = match node.value {
        Value::Text(name) | Value::Number(name) => (node.at, name),
        Value::Bool(flag) => (node.at, flag.to_string()),
        Value::Null | Value::List(_) | Value::Map(_) => {
            let complaint = Complaint::new("a key is one word", "write `key: value`");
            return Err((node.at, complaint));
        }
    };
    if name == "<<" {
        let complaint = Complaint::new("merge keys are not supported", "write the merged keys out");
        return Err((at, complaint));
    }
    if let Some(first) = seen.get(&name) {
        let message = format!("key {} comes twice", quoted(&name));
        let hint = format!("remove one; the first is at line {}", first.line);
        return Err((at, Complaint::new(message, hint)));
    }
    seen.insert(name.clone(), at);
    Ok(Key::Read(at, name))
}

fn mark(span: Span) -> Mark {
    Mark { line: span.start.line(), column: span.start.col() + 1 }
}

/// What a scalar means; in quotes it is text whatever it looks like.
fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::Text(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ if is_number(text) => Value::Number(text.to_owned()),
        _ => Value::Text(text.to_owned()),
    }
}

fn is_number(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let based = |prefix, base| {
        text.strip_prefix(prefix)
            .is_some_and(|it| !it.is_empty() && it.chars().all(|digit| digit.is_digit(base)))
    };
    let decimal = unsigned.starts_with(|it: char| it.is_ascii_digit() || it == '.')
        && unsigned.parse::<f64>().is_ok();
    let special = matches!(unsigned.to_lowercase().as_str(), ".inf" | ".nan");
    decimal || special || based("0x", 16) || based("0o", 8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_value_and_key_knows_its_place() {
        let nodes = good("# comment\na:\n  - ü: [x, 'y']\n---\n# nothing\n---\nb: 1\n");
        assert_eq!(nodes.len(), 2);
        let list = entry(&nodes[0], "a");
        assert_eq!((list.at.line, list.at.column), (2, 1));
        let Value::List(items) = &list.value.value else { panic!("{list:?}") };
        let Value::List(inner) = &entry(&items[0], "ü").value.value else { panic!("{items:?}") };
        assert_eq!((inner[1].at.line, inner[1].at.column), (3, 12));
        assert_eq!((nodes[1].at.line, nodes[1].at.column), (7, 1));
    }

    #[test]
    fn a_plain_word_means_what_yaml_1_2_says() {
        let nodes = good("[~, true, 12, 1.5, 0x1f, off, 'true', 1h, -x, .inf, 1.2.3.4]");
        let Value::List(items) = &nodes[0].value else { panic!("{nodes:?}") };
        let text = |it: &str| Value::Text(it.to_owned());
        let number = |it: &str| Value::Number(it.to_owned());
        let values: Vec<_> = items.iter().map(|it| it.value.clone()).collect();
        let expected = [
            Value::Null,
            Value::Bool(true),
            number("12"),
            number("1.5"),
            number("0x1f"),
            text("off"),
            text("true"),
            text("1h"),
            text("-x"),
            number(".inf"),
            text("1.2.3.4"),
        ];
        assert_eq!(values, expected);
    }

    #[test]
    fn the_documents_before_a_syntax_error_are_read() {
        let (documents, wrong) = parse(b"a: 1\n---\nb: [1\n---\n");
        assert_eq!((documents.len(), wrong.len()), (1, 1));
    }

    #[test]
    fn a_key_that_comes_twice_names_the_first() {
        let (_, wrong) = parse(b"a: 1\nb: 2\na: 3\n");
        let (at, complaint) = &wrong[0];
        assert_eq!((at.line, at.column), (3, 1));
        assert_eq!(complaint.message, "key `a` comes twice");
        assert!(complaint.hint.ends_with("line 1"));
    }

    #[test]
    fn bytes_that_are_no_text_are_found() {
        let (_, wrong) = parse(b"a: 1\nb: \xff\n");
        assert_eq!((wrong[0].0.line, wrong[0].0.column), (2, 4));
    }

    #[test]
    fn an_alias_repeats_its_value() {
        let nodes = good("a: &x [1, 2]\nb: *x\n");
        assert_eq!(entry(&nodes[0], "a").value, entry(&nodes[0], "b").value);
    }

    #[test]
    fn a_small_file_never_becomes_a_large_tree() {
        let level = |level: usize| {
            let below = format!("*a{},", level - 1).repeat(10);
            format!("a{level}: &a{level} [{below}]\n")
        };
        let bomb: String = (1..10).map(level).collect();
        let bomb = format!("a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n{bomb}");
        let (documents, wrong) = parse(bomb.as_bytes());
        assert!(documents.is_empty());
        assert!(wrong[0].1.message.starts_with("more than 100000 values"), "{wrong:?}");
    }

    #[test]
    fn no_value_stands_deeper_than_the_limit() {
        let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
        assert!(!parse(deep.as_bytes()).1.is_empty());
        let level = |level: usize| format!("a{level}: &a{level} [*a{}]\n", level - 1);
        let chain: String = (1..40).map(level).collect();
        let (_, wrong) = parse(format!("a0: &a0 [1]\n{chain}").as_bytes());
        assert!(wrong[0].1.message.starts_with("more than 32 levels"), "{wrong:?}");
    }

    #[test]
    fn an_alias_cannot_hold_itself() {
        let (_, wrong) = parse(b"a: &a [*a]\n");
        assert_eq!(wrong.len(), 1);
    }

    proptest! {
        /// No bytes make the reader panic.
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _tree = parse(&bytes);
        }

        /// Nor does text made of YAML's own signs.
        #[test]
        fn no_signs_make_the_reader_panic(text in "[ \\n\\t\\-:?&*!|>%@'\"{}\\[\\],#a1~<.]{0,120}") {
            let _tree = parse(text.as_bytes());
        }
    }

    fn good(text: &str) -> Vec<Node> {
        let (documents, wrong) = parse(text.as_bytes());
        assert!(wrong.is_empty(), "{wrong:?}");
        documents
    }

    fn entry<'n>(node: &'n Node, key: &str) -> &'n Entry {
        let Value::Map(entries) = &node.value else { panic!("{node:?}") };
        entries.iter().find(|it| it.key == key).unwrap()
    }
}
