//! Journal: lines of JSON in a file that cannot fill the disk.
//!
//! Each line has the time, and is with the kernel when [`Journal::write`] returns: what may only
//! be done on record waits for that. The file is readable by its owner, and only ever appended
//! to; one of [`BYTES_MAX`] is put aside with `.1` behind its name, in place of the one before.
//!
//! A disk that is full leaves half a line at the most. Whatever is written next begins a line of
//! its own, also in another process.
//!
//! Where the log is all that is kept of a process, lines go there, among the others and with a
//! `target` to tell them by.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use parking_lot::Mutex;
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Some hundred thousand lines.
pub const BYTES_MAX: u64 = 64 << 20;

/// Where lines go.
pub struct Journal {
    /// Of the file; there is none for the log.
    path: Option<PathBuf>,
    /// Of the log's lines.
    target: Option<&'static str>,
    out: Mutex<Out>,
}

/// What is open.
struct Out {
    writer: Box<dyn Write + Send>,
    /// What is in it.
    length: u64,
    /// Whether it ends in the middle of a line.
    cut: bool,
}

/// A line as it is written.
#[derive(Serialize)]
struct Stamped<'a, L> {
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<&'static str>,
    #[serde(flatten)]
    line: &'a L,
}

impl Journal {
    /// In the file of that path, behind what is in it.
    ///
    /// # Errors
    ///
    /// When it cannot be opened.
    pub fn file(path: &Path) -> io::Result<Self> {
        let out = Mutex::new(open(path)?);
        Ok(Self { path: Some(path.to_owned()), target: None, out })
    }

    /// In the log that `out` writes, under `target`.
    pub fn log(target: &'static str, out: impl Write + Send + 'static) -> Self {
        let out = Out { writer: Box::new(out), length: 0, cut: false };
        Self { path: None, target: Some(target), out: Mutex::new(out) }
    }

    /// Writes an object as a line, that of `now` since the Unix epoch.
    ///
    /// # Errors
    ///
    /// When it is not written, or not to its end.
    pub fn write(&self, line: &impl Serialize, now: Duration) -> io::Result<()> {
        let time = (OffsetDateTime::UNIX_EPOCH + now).format(&Rfc3339).unwrap_or_default();
        let mut text = serde_json::to_string(&Stamped { time, target: self.target, line })? + "\n";
        let mut out = self.out.lock();
        if let Some(path) = self.path.as_ref().filter(|_| BYTES_MAX < out.length) {
            fs::rename(path, path.with_added_extension("1"))?;
            *out = open(path)?;
        }
        if out.cut {
            text.insert(0, '\n');
        }
        out.cut = true;
        out.writer.write_all(text.as_bytes())?;
        out.cut = false;
        out.length += text.len() as u64;
        Ok(())
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("path", &self.path).finish_non_exhaustive()
    }
}

fn open(path: &Path) -> io::Result<Out> {
    let file = File::options().create(true).read(true).append(true).mode(0o600).open(path)?;
    let length = file.metadata()?.len();
    let mut last = *b"\n";
    if let Some(at) = length.checked_sub(1) {
        file.read_exact_at(&mut last, at)?;
    }
    Ok(Out { writer: Box::new(file), length, cut: last != *b"\n" })
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Seek as _},
        os::unix::{fs::PermissionsExt as _, net::UnixStream},
    };

    use super::*;

    #[derive(Serialize)]
    struct Line {
        event: &'static str,
    }

    const ISSUED: Line = Line { event: "issued" };

    #[test]
    fn a_full_file_is_put_aside_and_a_new_one_begun() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        File::create(&path).unwrap().set_len(BYTES_MAX + 1).unwrap();
        let journal = Journal::file(&path).unwrap();
        for _ in 0..2 {
            journal.write(&ISSUED, Duration::from_secs(1_770_091_506)).unwrap();
        }
        let aside = fs::metadata(dir.path().join("audit.jsonl.1")).unwrap();
        assert_eq!(aside.len(), BYTES_MAX + 1);
        let expected = "{\"time\":\"2026-02-03T04:05:06Z\",\"event\":\"issued\"}\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), expected.repeat(2));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_line_of_the_log_says_whose_it_is() {
        let mut log = tempfile::tempfile().unwrap();
        let journal = Journal::log("audit", log.try_clone().unwrap());
        journal.write(&ISSUED, Duration::ZERO).unwrap();
        let mut text = String::new();
        log.rewind().unwrap();
        log.read_to_string(&mut text).unwrap();
        let expected =
            "{\"time\":\"1970-01-01T00:00:00Z\",\"target\":\"audit\",\"event\":\"issued\"}\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_is_there_is_gone_on_with_and_half_a_line_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let write = || Journal::file(&path).unwrap().write(&ISSUED, Duration::ZERO).unwrap();
        write();
        write();
        let whole = fs::read_to_string(&path).unwrap();
        assert_eq!(whole.lines().count(), 2);
        fs::write(&path, whole.clone() + "{\"time\"").unwrap();
        write();
        let text = fs::read_to_string(&path).unwrap();
        let first = whole.lines().next().unwrap();
        assert_eq!(text, format!("{whole}{{\"time\"\n{first}\n"));
    }

    #[test]
    fn after_a_line_that_was_cut_short_the_next_is_whole() {
        let (out, mut reader) = UnixStream::pair().unwrap();
        // It takes no more than fits, as a disk does.
        out.set_nonblocking(true).unwrap();
        reader.set_nonblocking(true).unwrap();
        let journal = Journal::log("audit", out);
        let long = "x".repeat(1 << 20).leak();
        assert!(journal.write(&Line { event: long }, Duration::ZERO).is_err());
        let mut cut = Vec::new();
        let _all_there_is = reader.read_to_end(&mut cut).is_err();
        assert!(!cut.is_empty() && !cut.ends_with(b"\n"));
        journal.write(&ISSUED, Duration::ZERO).unwrap();
        let mut next = Vec::new();
        let _all_there_is = reader.read_to_end(&mut next).is_err();
        assert!(next.starts_with(b"\n{") && next.ends_with(b"\"issued\"}\n"));
    }
}
