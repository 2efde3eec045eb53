//! Files that change together.
//!
//! Next to the first file, `svid.pem`, are `..svid.pem.data`, a link to a directory, and that directory,
//! `..svid.pem.v<time>-<random>`, which holds all files of one version. The configured names are links through the
//! first: `svid.pem -> ..svid.pem.data/svid.pem`. A new version is a new directory, complete and synced before the
//! one link is renamed over the old; so a reader that resolves the link once sees files that belong together, and every
//! single file is complete. The replaced version stays until the next one, for readers that are still using it.
//!
//! Plain files in the place of the links, from a program that wrote them one by one, first become a
//! version themselves, so that a reader sees no change.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use finial_identity::process::private_file::{self, FileError, FileMode};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::config::OutputFile;

/// The largest plain file that is taken over, in bytes.
const MAX_TAKEN_OVER: usize = 64 << 20;
/// How old what nobody points to must be before it is removed: another process may be about to point to it.
const LEFTOVER_AGE: Duration = Duration::minutes(1);

/// Why a new version is not in place; the old one is.
#[derive(Debug, thiserror::Error)]
pub(super) enum SwapError {
    /// A file could not be written.
    #[error("{0}")]
    File(#[from] FileError),
    /// The operating system refused.
    #[error("{action}: {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody's own link, whose target would no longer be kept up to date.
    #[error("refused to replace a link that is not ours: {}", .0.display())]
    ForeignLink(PathBuf),
    /// A directory, a socket or alike.
    #[error("neither a plain file nor a link: {}", .0.display())]
    NotAFile(PathBuf),
}

/// A set of files that are replaced as one step.
#[derive(Clone, Debug)]
pub(super) struct FileSet {
    /// The directory of the first file, where the versions are.
    home: PathBuf,
    /// What the names of our own begin with: `..svid.pem`.
    prefix: String,
    slots: Vec<Slot>,
}

#[derive(Clone, Debug)]
struct Slot {
    /// The configured path.
    path: PathBuf,
    /// The name inside of a version.
    stored: String,
    /// What the link at `path` says.
    link: PathBuf,
    mode: FileMode,
}

/// What stands at a configured path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occupant {
    Nothing,
    /// A file that some other program wrote.
    PlainFile,
    /// A link of the helper, with another target than in this configuration.
    OldLink,
    Link,
}

impl FileSet {
    /// The files in the order of the configuration: the first names the set, and appears last.
    pub(super) fn new(files: &[&OutputFile]) -> Self {
        let name_of = |file: &OutputFile| {
            let name = file.path.file_name().unwrap_or_default();
            name.to_string_lossy().into_owned()
        };
        let first = files.first();
        let home = first
            .and_then(|file| file.path.parent())
            .unwrap_or(Path::new("/"));
        let prefix = format!("..{}", first.map(|file| name_of(file)).unwrap_or_default());
        let mut slots: Vec<Slot> = Vec::with_capacity(files.len());
        for (index, file) in files.iter().enumerate() {
            let name = name_of(file);
            let is_taken = slots.iter().any(|slot| slot.stored == name);
            let stored = if is_taken { format!("{index}.{name}") } else { name };
            let folder = file.path.parent().unwrap_or(Path::new("/"));
            slots.push(Slot {
                link: way(folder, home).join(data_name(&prefix)).join(&stored),
                path: file.path.clone(),
                stored,
                mode: file.mode,
            });
        }
        Self {
            home: home.to_owned(),
            prefix,
            slots,
        }
    }

    /// The link that every reader goes through.
    pub(super) fn data_link(&self) -> PathBuf {
        self.home.join(data_name(&self.prefix))
    }

    /// Puts `contents`, in the order of the files, in place. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// [`SwapError`]; then readers see what they saw before, unless it was a configured name that could not be made a link:
    /// the names that are links already show the new version then. No attempt leaves anything that the next one does not
    /// need.
    pub(super) fn publish(&self, contents: &[&[u8]], now: OffsetDateTime) -> Result<(), SwapError> {
        let mut occupants = Vec::with_capacity(self.slots.len());
        for slot in &self.slots {
            occupants.push(slot.look()?);
        }
        if occupants.contains(&Occupant::PlainFile) {
            self.take_over(&occupants, now)?;
        }
        let files = self.slots.iter().zip(contents);
        let version = self.write_version(
            files.map(|(slot, content)| (slot.stored.as_str(), *content, slot.mode)),
            now,
        )?;
        let replaced = fs::read_link(self.data_link()).ok();
        self.point_to(&version)?;
        let linked = self.link_all();
        self.remove_leftovers(&version, replaced.as_deref(), now);
        linked
    }

    /// Makes links of the configured names, the first one last.
    fn link_all(&self) -> Result<(), SwapError> {
        for slot in self.slots.iter().rev() {
            if slot.look()? != Occupant::Link {
                slot.put_link(&self.prefix)?;
            }
        }
        Ok(())
    }

    /// Makes a version of what readers see now, and links of the plain files.
    fn take_over(&self, occupants: &[Occupant], now: OffsetDateTime) -> Result<(), SwapError> {
        let mut found = Vec::new();
        for slot in &self.slots {
            // What cannot be read, or is not there, is not taken over; it is replaced later.
            if let Ok(secret) = private_file::read_secret(&slot.path, MAX_TAKEN_OVER)
                && let Ok(metadata) = fs::metadata(&slot.path)
            {
                found.push((slot, secret, FileMode::new(metadata.permissions().mode())));
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        let files = found.iter();
        let version = self.write_version(
            files.map(|(slot, secret, mode)| (slot.stored.as_str(), secret.as_bytes(), *mode)),
            now,
        )?;
        self.point_to(&version)?;
        for (slot, occupant) in self.slots.iter().zip(occupants) {
            let is_stored = found.iter().any(|(stored, ..)| stored.stored == slot.stored);
            if is_stored && *occupant == Occupant::PlainFile {
                slot.put_link(&self.prefix)?;
            }
        }
        tracing::info!(link = %self.data_link().display(), "plain files became links to one directory");
        Ok(())
    }

    /// Writes a directory with all files and gives its name. Nothing is left of one that cannot be completed.
    fn write_version<'a>(
        &self,
        files: impl Iterator<Item = (&'a str, &'a [u8], FileMode)>,
        now: OffsetDateTime,
    ) -> Result<String, SwapError> {
        let random = Uuid::new_v4().simple().to_string();
        let name = format!("{}.v{}-{random}", self.prefix, now.unix_timestamp());
        let path = self.home.join(&name);
        let failed = |action| {
            let path = path.clone();
            move |source| SwapError::Io { action, path, source }
        };
        let home = fs::metadata(&self.home).map_err(|source| SwapError::Io {
            action: "examine directory",
            path: self.home.clone(),
            source,
        })?;
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(failed("create directory"))?;
        let written = (|| {
            for (name, bytes, mode) in files {
                private_file::write(&path.join(name), bytes, mode)?;
            }
            // Whoever may enter the home may enter here, and nobody else may write; a group is inherited alike.
            let mode = home.permissions().mode() & 0o2755 | 0o700;
            fs::set_permissions(&path, Permissions::from_mode(mode))
                .map_err(failed("set mode of directory"))?;
            sync(&path)
        })();
        if written.is_err() {
            let _leftover = fs::remove_dir_all(&path);
        }
        written.map(|()| name)
    }

    /// The one step that readers see. A version that they cannot see is removed: there is a key in it.
    fn point_to(&self, version: &str) -> Result<(), SwapError> {
        let (link, target) = (self.data_link(), Path::new(version));
        let pointed = put_link(&link, target, &self.prefix);
        // The link may be in place although its directory could not be synced.
        if pointed.is_err() && fs::read_link(link).ok().as_deref() != Some(target) {
            let _leftover = fs::remove_dir_all(self.home.join(version));
        }
        pointed
    }

    /// Removes what neither the link nor a reader under way needs. Trouble is left to the next time.
    fn remove_leftovers(&self, version: &str, replaced: Option<&Path>, now: OffsetDateTime) {
        let Ok(entries) = fs::read_dir(&self.home) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(&self.prefix)) else {
                continue;
            };
            let Ok(metadata) = entry.metadata() else { continue };
            let is_young = metadata
                .modified()
                .is_ok_and(|at| now - OffsetDateTime::from(at) < LEFTOVER_AGE);
            if is_young || name == version || replaced == Some(Path::new(&name)) {
                continue;
            }
            let removed = if metadata.is_dir() && is_version(rest) {
                fs::remove_dir_all(entry.path())
            } else if metadata.is_symlink() && is_temporary(rest) {
                fs::remove_file(entry.path())
            } else {
                continue;
            };
            if let Err(error) = removed {
                tracing::warn!(path = %entry.path().display(), %error, "files of an old version cannot be removed");
            }
        }
    }
}

impl Slot {
    fn look(&self) -> Result<Occupant, SwapError> {
        let metadata = match fs::symlink_metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Occupant::Nothing),
            Err(source) => {
                return Err(SwapError::Io {
                    action: "examine file",
                    path: self.path.clone(),
                    source,
                });
            }
        };
        if metadata.is_file() {
            return Ok(Occupant::PlainFile);
        }
        if !metadata.is_symlink() {
            return Err(SwapError::NotAFile(self.path.clone()));
        }
        match fs::read_link(&self.path) {
            Ok(link) if link == self.link => Ok(Occupant::Link),
            Ok(link) if is_of_our_kind(&link) => Ok(Occupant::OldLink),
            _ => Err(SwapError::ForeignLink(self.path.clone())),
        }
    }

    fn put_link(&self, prefix: &str) -> Result<(), SwapError> {
        put_link(&self.path, &self.link, prefix)
    }
}

/// Places a link whatever is there, as one step, durably.
fn put_link(path: &Path, target: &Path, prefix: &str) -> Result<(), SwapError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let temporary = folder.join(format!("{prefix}.{}.tmp", Uuid::new_v4().simple()));
    let failed = |action| {
        move |source| SwapError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    };
    symlink(target, &temporary).map_err(failed("create link beside"))?;
    let renamed = fs::rename(&temporary, path).map_err(failed("replace by a link"));
    if renamed.is_err() {
        let _leftover = fs::remove_file(&temporary);
    }
    renamed?;
    sync(folder)
}

fn sync(directory: &Path) -> Result<(), SwapError> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| SwapError::Io {
            action: "sync directory",
            path: directory.to_owned(),
            source,
        })
}

fn data_name(prefix: &str) -> String {
    format!("{prefix}.data")
}

/// What stands behind the prefix in `..svid.pem.v1700000000-0123456789abcdef…`.
fn is_version(rest: &str) -> bool {
    let parts = rest.strip_prefix(".v").and_then(|rest| rest.split_once('-'));
    parts.is_some_and(|(time, random)| {
        time.trim_start_matches('-')
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            && is_random(random)
    })
}

fn is_temporary(rest: &str) -> bool {
    let random = rest.strip_prefix('.').and_then(|rest| rest.strip_suffix(".tmp"));
    random.is_some_and(is_random)
}

fn is_random(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a link goes through a data link, of whichever set.
fn is_of_our_kind(link: &Path) -> bool {
    let data = link
        .parent()
        .and_then(Path::file_name)
        .and_then(|name| name.to_str());
    data.is_some_and(|name| name.starts_with("..") && name.ends_with(".data"))
}

/// The relative way between two absolute directories, so that links stay right where the tree is mounted elsewhere.
fn way(from: &Path, to: &Path) -> PathBuf {
    let (mut from, mut to) = (from.components().peekable(), to.components().peekable());
    while from.peek().is_some() && from.peek() == to.peek() {
        from.next();
        to.next();
    }
    from.map(|_| Component::ParentDir).chain(to).collect()
}

#[cfg(test)]
mod tests;
