//! PEM: the blocks of a file, each with the line it begins at.
//!
//! A trust bundle is edited by hand, so a mistake is reported by its line. Text outside
//! blocks is explanatory (RFC 7468, section 2) and skipped; inside a block anything wrong
//! is an error: a certificate that silently goes missing is an outage later.
//!
//! # Sources
//!
//! - RFC 7468: <https://www.rfc-editor.org/rfc/rfc7468>

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, pem::PemObject,
};

use zeroize::Zeroizing;

/// The label of a certificate.
pub const CERTIFICATE: &str = "CERTIFICATE";

/// The label of a private key that says itself of which kind it is (PKCS #8).
pub const PRIVATE_KEY: &str = "PRIVATE KEY";

/// What to do about a file that should have been certificates.
pub(crate) const HINT: &str =
    "expected certificates in PEM, which begin with `-----BEGIN CERTIFICATE-----`";

/// The label of a request for a certificate.
const REQUEST: &str = "CERTIFICATE REQUEST";

/// One block, still encoded.
#[derive(Clone, Copy)]
pub struct Block<'a> {
    /// The line of its `BEGIN`, from 1.
    pub line: usize,
    /// What it says it is: `CERTIFICATE`, `PRIVATE KEY`.
    pub label: &'a str,
    /// From `BEGIN` to `END`.
    text: &'a [u8],
}

/// Why a file is not PEM.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A block that does not end.
    #[error("line {line}: the `{label}` that begins here has no end")]
    NoEnd {
        /// Where it begins.
        line: usize,
        /// What it says it is.
        label: String,
    },
    /// An end without a beginning, or with another label than its beginning.
    #[error("line {line}: this `END` belongs to no `BEGIN`")]
    NoBegin {
        /// Where.
        line: usize,
    },
    /// The inside of a block is not base64.
    #[error("line {line}: the `{label}` that begins here is damaged")]
    Damaged {
        /// Where it begins.
        line: usize,
        /// What it says it is.
        label: String,
    },
}

/// The bytes of a line of base64 (RFC 7468, section 2): 64 characters.
const LINE_BYTES: usize = 48;

/// The certificates of several files, each once, without the text around them; a file that is
/// not PEM has none.
pub fn certificates<const N: usize>(files: [&str; N]) -> String {
    let mut all: Vec<String> = Vec::new();
    let blocks = files.map(|it| blocks(it.as_bytes()).unwrap_or_default());
    for block in blocks.into_iter().flatten().filter(Block::is_certificate) {
        let text = block.to_pem();
        if !all.contains(&text) {
            all.push(text);
        }
    }
    all.concat()
}

/// Writes `der` as one block; wiped when dropped, since it may be a key.
pub fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let lines = der.len().div_ceil(LINE_BYTES);
    // Sized at once: a text that grows leaves copies of a key behind.
    let mut text = Zeroizing::new(String::with_capacity(lines * 65 + 2 * label.len() + 64));
    text.extend(["-----BEGIN ", label, "-----\n"]);
    for line in der.chunks(LINE_BYTES) {
        STANDARD.encode_string(line, &mut text);
        text.push('\n');
    }
    text.extend(["-----END ", label, "-----\n"]);
    text
}

/// Splits `file` into its blocks.
///
/// # Errors
///
/// When a block has no end, or an end no beginning.
pub fn blocks(file: &[u8]) -> Result<Vec<Block<'_>>, Error> {
    let mut blocks = Vec::new();
    let mut open: Option<(usize, &str, usize)> = None;
    let mut at = 0;
    for (index, line) in file.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let (number, begin) = (index + 1, at);
        at += line.len();
        if let Some(label) = marker(line, b"-----BEGIN ") {
            if let Some((line, label, _)) = open {
                return Err(Error::NoEnd { line, label: label.to_owned() });
            }
            open = Some((number, label, begin));
        } else if let Some(ended) = marker(line, b"-----END ") {
            let Some((line, label, begin)) = open.take().filter(|(_, label, _)| *label == ended)
            else {
                return Err(Error::NoBegin { line: number });
            };
            blocks.push(Block { line, label, text: &file[begin..at] });
        }
    }
    match open {
        Some((line, label, _)) => Err(Error::NoEnd { line, label: label.to_owned() }),
        None => Ok(blocks),
    }
}

/// The label of a line such as `-----BEGIN CERTIFICATE-----`.
fn marker<'a>(line: &'a [u8], prefix: &[u8]) -> Option<&'a str> {
    let rest = line.trim_ascii_end().strip_prefix(prefix)?;
    std::str::from_utf8(rest.strip_suffix(b"-----")?).ok()
}

impl Block<'_> {
    /// Whether it says it is a certificate.
    pub fn is_certificate(&self) -> bool {
        self.label == CERTIFICATE
    }

    /// Whether it says it is a request for a certificate.
    pub(crate) fn is_request(&self) -> bool {
        self.label == REQUEST
    }

    /// Whether it says it is a private key of some form.
    pub fn is_private_key(&self) -> bool {
        self.label.ends_with("PRIVATE KEY")
    }

    /// Decodes a certificate's block.
    ///
    /// # Errors
    ///
    /// When the inside is not base64, or the label says otherwise.
    pub fn certificate(&self) -> Result<CertificateDer<'static>, Error> {
        CertificateDer::from_pem_slice(self.text).map_err(|_| self.damaged())
    }

    /// Decodes a request's block.
    pub(crate) fn request(&self) -> Result<CertificateSigningRequestDer<'static>, Error> {
        CertificateSigningRequestDer::from_pem_slice(self.text).map_err(|_| self.damaged())
    }

    /// Decodes a private key's block.
    pub(crate) fn private_key(&self) -> Result<PrivateKeyDer<'static>, Error> {
        PrivateKeyDer::from_pem_slice(self.text).map_err(|_| self.damaged())
    }

    /// The block as it stands in the file, with one line's end after it.
    pub fn to_pem(self) -> String {
        format!("{}\n", String::from_utf8_lossy(self.text).trim_end())
    }

    fn damaged(&self) -> Error {
        Error::Damaged { line: self.line, label: self.label.to_owned() }
    }
}

impl std::fmt::Debug for Block<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The text may be a key.
        f.debug_struct("Block").field("line", &self.line).field("label", &self.label).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The words of a key are put together here: a file of the project holds none.
    const TWO: &str = concat!(
        "# the root\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "\n-----BEGIN",
        " PRIVATE KEY-----\r\nBBBB\r\n-----END PRIVATE KEY-----",
    );

    #[test]
    fn blocks_know_their_lines_and_labels() {
        let blocks = blocks(TWO.as_bytes()).unwrap();
        let found: Vec<_> = blocks.iter().map(|it| (it.line, it.label)).collect();
        assert_eq!(found, [(2, "CERTIFICATE"), (6, "PRIVATE KEY")]);
        assert_eq!(blocks[0].certificate().unwrap().as_ref(), [0, 0, 0]);
    }

    #[test]
    fn a_block_never_prints_its_inside() {
        assert!(!format!("{:?}", blocks(TWO.as_bytes()).unwrap()).contains("BBBB"));
    }

    #[test]
    fn a_mistake_is_reported_by_its_line() {
        let label = || "X".to_owned();
        let no_end = |line| Error::NoEnd { line, label: label() };
        for (text, error) in [
            ("\n-----BEGIN X-----\nAAAA\n", no_end(2)),
            ("-----BEGIN X-----\n-----BEGIN X-----\n-----END X-----\n", no_end(1)),
            ("\n\n-----END X-----\n", Error::NoBegin { line: 3 }),
            ("-----BEGIN X-----\n-----END Y-----\n", Error::NoBegin { line: 2 }),
        ] {
            assert_eq!(blocks(text.as_bytes()).unwrap_err(), error, "{text}");
        }
        let text = "\n-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n";
        let error = Error::Damaged { line: 2, label: CERTIFICATE.to_owned() };
        assert_eq!(blocks(text.as_bytes()).unwrap()[0].certificate(), Err(error));
    }

    #[test]
    fn what_is_written_is_read_again() {
        for length in [0, 1, 47, 48, 49, 1000] {
            let der = vec![7; length];
            let text = encode(CERTIFICATE, &der);
            assert!(text.lines().all(|it| it.len() <= 64) && text.len() < text.capacity());
            let blocks = blocks(text.as_bytes()).unwrap();
            assert_eq!(blocks[0].certificate().unwrap().as_ref(), der);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_split_or_refused(bytes in any::<Vec<u8>>()) {
            prop_assert!(blocks(&bytes).map_or(0, |it| it.len()) <= bytes.len());
        }
    }
}
