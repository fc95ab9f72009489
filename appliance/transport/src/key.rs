//! The cluster key: 32 secret bytes, their file, and proofs made with them.
//!
//! Must not print the key, and must not compare anything derived from it in variable time.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use subtle::ConstantTimeEq;

/// First line of a key file.
const FIRST_LINE: &str = "claudefs-key-v1";

/// Longest key file that is read: the two lines and room for line ends.
const MAX_FILE: u64 = 128;

/// A key that both sides of a connection hold.
#[derive(Clone)]
pub struct Key([u8; 32]);

/// Why a key could not be had or kept. The operator acts.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file can't be read or written.
    #[error("key file {path}: {source}; `claudefs key generate` makes one, or copy it from a node")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Others than its owner may read the file.
    #[error("key file {path} has mode {mode:04o}: others may read it; run `chmod 600 {path}`")]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds something else.
    #[error("key file {path} is not a key: {reason}; copy it again from a node")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// The kernel has no random bytes.
    #[error("no random bytes from the kernel: {0}")]
    Random(#[source] std::io::Error),
}

impl Key {
    /// A fresh random key.
    ///
    /// # Errors
    /// [`KeyError::Random`].
    pub fn generate() -> Result<Self, KeyError> {
        random().map(Self)
    }

    /// From its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads a key file: the line `claudefs-key-v1`, then 64 hexadecimal digits. Mode 0600 or less.
    ///
    /// # Errors
    /// See [`KeyError`]; the message says what to do.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        use std::io::Read;
        let io = |source| KeyError::Io { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(io)?;
        let mode = file.metadata().map_err(io)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Mode { path: path.to_owned(), mode });
        }
        let mut text = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(io)?;
        let key = Self::parse(&text).map_err(|reason| KeyError::Format { path: path.to_owned(), reason });
        text.fill(0);
        std::hint::black_box(&text);
        key
    }

    /// Reads the text of a key file.
    ///
    /// # Errors
    /// The reason why it is none.
    pub fn parse(text: &[u8]) -> Result<Self, &'static str> {
        if text.len() as u64 > MAX_FILE {
            return Err("it is too long");
        }
        let mut lines = text.split(|&b| b == b'\n').map(<[u8]>::trim_ascii);
        if lines.next() != Some(FIRST_LINE.as_bytes()) {
            return Err("its first line is not `claudefs-key-v1`");
        }
        let digits = lines.next().unwrap_or_default();
        if digits.len() != 64 || lines.any(|line| !line.is_empty()) {
            return Err("its second line is not 64 hexadecimal digits, or more lines follow");
        }
        let mut key = Self([0; 32]);
        for (byte, pair) in key.0.iter_mut().zip(digits.chunks_exact(2)) {
            let digit =
                |c: u8| char::from(c).to_digit(16).ok_or("it has a character that is no hexadecimal digit");
            *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
        }
        Ok(key)
    }

    /// Writes a new key file of mode 0600; an existing file is left alone.
    ///
    /// # Errors
    /// [`KeyError::Io`], with `AlreadyExists` where there is one.
    pub fn save(&self, path: &Path) -> Result<(), KeyError> {
        let io = |source| KeyError::Io { path: path.to_owned(), source };
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io)?;
        let digits: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        file.write_all(format!("{FIRST_LINE}\n{digits}\n").as_bytes()).map_err(io)?;
        file.sync_all().map_err(io)
    }

    /// A public fingerprint: tells which key is meant, and nothing of the key.
    #[must_use]
    pub fn id(&self) -> [u8; 8] {
        let mut id = [0; 8];
        id.copy_from_slice(&self.mac(b"claudefs key id\0", &[])[..8]);
        id
    }

    /// HMAC-SHA-256 over a label of 16 bytes, then each part with its length (u32, little-endian) before it.
    pub(crate) fn mac(&self, label: &[u8; 16], parts: &[&[u8]]) -> [u8; 32] {
        self.hmac(label, parts).finalize().into_bytes().into()
    }

    /// Whether `proof` is [`Key::mac`] of the same, in constant time.
    pub(crate) fn verify(&self, label: &[u8; 16], parts: &[&[u8]], proof: &[u8; 32]) -> bool {
        self.mac(label, parts).ct_eq(proof).into()
    }

    fn hmac(&self, label: &[u8; 16], parts: &[&[u8]]) -> Hmac<Sha256> {
        // HMAC pads a short key with zeros to the hash's block (RFC 2104 section 2).
        let mut block = [0; 64];
        block[..32].copy_from_slice(&self.0);
        let mut mac = <Hmac<Sha256> as KeyInit>::new(&block.into());
        block.fill(0);
        std::hint::black_box(&block);
        mac.update(label);
        for part in parts {
            mac.update(&(part.len() as u32).to_le_bytes());
            mac.update(part);
        }
        mac
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.fill(0);
        // The compiler must believe that the zeros are read.
        std::hint::black_box(&self.0);
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({})", hex(&self.id()))
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], KeyError> {
    let mut bytes = [0; N];
    reactor::random(&mut bytes).map_err(KeyError::Random)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_survives_its_file_and_stays_private() {
        let dir = tempfile::tempdir().expect("scratch");
        let path = dir.path().join("key");
        let key = Key::generate().expect("random");
        key.save(&path).expect("saved");
        assert_eq!(Key::load(&path).expect("loaded").0, key.0);
        assert!(matches!(key.save(&path), Err(KeyError::Io { .. })), "an existing key is not overwritten");
        assert!(!format!("{key:?}").contains(&hex(&key.0[..4])));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).expect("chmod");
        let error = Key::load(&path).expect_err("readable by the group").to_string();
        assert!(error.contains("chmod 600"), "{error}");
        assert!(
            Key::load(&dir.path().join("none")).expect_err("missing").to_string().contains("key generate")
        );
    }

    #[test]
    fn other_texts_are_no_keys() {
        let good = format!("{FIRST_LINE}\n{}\n", "0f".repeat(32));
        assert_eq!(Key::parse(good.as_bytes()).expect("a key").0, [15; 32]);
        for bad in
            [String::new(), "x\n".into(), good.replace('f', "g"), format!("{good}more"), good.repeat(2)]
        {
            assert!(Key::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
