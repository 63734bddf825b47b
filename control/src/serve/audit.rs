//! Audit: a line of JSON for each certificate handed out, and for each that was refused.
//!
//! Who runs on one machine finds them in `DIR/state/audit.jsonl`, readable by its owner;
//! on Kubernetes they go the way of all logs, whatever the filter, with `target` `audit`. A certificate whose line
//! cannot be written is not handed out. There is never a token or a key in a line, nor in
//! what it is made of.
//!
//! A file of [`BYTES_MAX`] is put aside as `audit.jsonl.1`, in place of the one before, so that
//! no flood of refusals fills the disk. Refusals for coming too often are counted and not
//! written.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use parking_lot::Mutex;
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Some hundred thousand lines.
const BYTES_MAX: u64 = 64 << 20;

/// What is said of a certificate, or of a refusal.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Line {
    pub(crate) event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) caller: Option<IpAddr>,
    /// `join_token`, `service_account`, `certificate` or `none`.
    pub(crate) proof: &'static str,
    /// The beginning of the join token's digest, as `token create` shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
    /// Whom the caller proved to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) instance: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) serial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) not_after: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// Where lines go.
#[derive(Debug)]
pub(crate) enum Audit {
    /// To a file.
    File {
        /// Its path.
        path: PathBuf,
        /// Opened, and how much is in it.
        open: Mutex<(File, u64)>,
    },
    /// To the process's log.
    Log,
}

#[derive(Serialize)]
struct Timed<'a> {
    time: String,
    #[serde(flatten)]
    line: &'a Line,
}

impl Audit {
    /// To the file of that path, behind what is in it.
    pub(crate) fn file(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        let length = file.metadata()?.len();
        Ok(Self::File { path: path.to_owned(), open: Mutex::new((file, length)) })
    }

    /// Writes a line.
    pub(crate) fn write(&self, line: &Line, now: Duration) -> io::Result<()> {
        match self {
            Self::Log => tracing::info!(
                target: "audit",
                caller = line.caller.map(display),
                proof = line.proof,
                token = line.token,
                id = line.id,
                instance = line.instance,
                serial = line.serial,
                not_after = line.not_after,
                reason = line.reason,
                error = line.error,
                "{}",
                line.event,
            ),
            Self::File { path, open: opened } => {
                let at = OffsetDateTime::UNIX_EPOCH + now;
                let time = at.format(&Rfc3339).unwrap_or_default();
                let text = serde_json::to_string(&Timed { time, line })? + "\n";
                let mut opened = opened.lock();
                if BYTES_MAX < opened.1 {
                    fs::rename(path, path.with_extension("jsonl.1"))?;
                    *opened = (open(path)?, 0);
                }
                // One write: half a line is left by a full disk only, and ended by the next.
                if let Err(error) = opened.0.write_all(text.as_bytes()) {
                    let _ended = opened.0.write_all(b"\n").is_ok();
                    return Err(error);
                }
                opened.1 += text.len() as u64;
            }
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_put_aside_and_a_new_one_begun() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        File::create(&path).unwrap().set_len(BYTES_MAX + 1).unwrap();
        let audit = Audit::file(&path).unwrap();
        let line = Line { event: "issued", proof: "certificate", ..Line::default() };
        for _ in 0..2 {
            audit.write(&line, Duration::from_secs(1_770_091_506)).unwrap();
        }
        let aside = fs::metadata(dir.path().join("audit.jsonl.1")).unwrap();
        assert_eq!(aside.len(), BYTES_MAX + 1);
        let expected = "{\"time\":\"2026-02-03T04:05:06Z\",\"event\":\"issued\",\
                        \"proof\":\"certificate\"}\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), expected.repeat(2));
    }

    #[test]
    fn what_is_there_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        for _ in 0..2 {
            Audit::file(&path).unwrap().write(&Line::default(), Duration::ZERO).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
    }
}
