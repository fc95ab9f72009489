//! `key`: makes key files and tells keys apart.

use crate::admin;
use crate::args::{KeyGenerate, KeyShowId};
use crate::failure::Failure;
use crate::print;
use std::io;
use std::path::{Path, PathBuf};
use transport::{Key, KeyError};

/// A key's fingerprint in the form in which messages show it.
fn id(key: &Key) -> String {
    key.id().iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn generate(args: &KeyGenerate) -> Result<(), Failure> {
    let key = Key::generate()?;
    let file = &args.file;
    if args.force {
        replace(&key, file)?;
    } else {
        key.save(file).map_err(|e| unsaved(e, file))?;
    }
    print::out(&format!("{}: key {}; copy it to every node and client\n", file.display(), id(&key)))
}

/// Puts a new key in the place of an old one in one step: no reader finds half a key, and a failure keeps the old one.
fn replace(key: &Key, file: &Path) -> Result<(), Failure> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new{}", std::process::id()));
    let new: PathBuf = file.with_file_name(name);
    key.save(&new).map_err(|e| unsaved(e, file))?;
    std::fs::rename(&new, file).map_err(|e| {
        // The reason to tell is the rename's.
        let _ = std::fs::remove_file(&new);
        Failure::Key(format!("{} can't be replaced: {e}", file.display()))
    })
}

fn unsaved(error: KeyError, file: &Path) -> Failure {
    let KeyError::Io { source, .. } = &error else { return error.into() };
    let shown = file.display();
    Failure::Key(match source.kind() {
        io::ErrorKind::AlreadyExists => format!(
            "{shown} exists and is kept: who holds its key would be locked out by a new one; --force replaces it"
        ),
        io::ErrorKind::NotFound => {
            let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            format!("{shown} can't be made: {} does not exist; make it with `mkdir -p {0}`", folder.display())
        }
        io::ErrorKind::PermissionDenied => {
            format!("{shown} can't be made: permission denied; run as root, or choose another place")
        }
        _ => format!("{shown} can't be written: {source}"),
    })
}

pub(crate) fn show_id(args: &KeyShowId) -> Result<(), Failure> {
    let file = admin::key_file(args.file.as_deref());
    print::out(&format!("{}\n", id(&Key::load(&file)?)))
}
