//! Which container a process is in, read off the names of its control groups. Pure: the text comes from
//! `/proc/<pid>/cgroup` and `/proc/<pid>/mountinfo`, in the formats of proc(5) and cgroups(7).
//!
//! A container runtime names the group of a container after its id, 64 hexadecimal digits, with a prefix or suffix:
//! `docker-<id>.scope`, `libpod-<id>`, `…:cri-containerd:<id>`. A kubelet puts the pod's UID further up. The kernel
//! reports the groups of a process; but a *name* was chosen by whoever may make groups, such as a user in the part of
//! the tree that was delegated to them. So a name alone proves nothing: attestors compare the group with that of the
//! container's first process ([`ContainerRef::holds`]). Mounts prove even less, because the process itself may have
//! made them.

/// Digits of a container's id.
const ID_DIGITS: usize = 64;

/// What joins the parts of a UID: as it is, or as systemd's names need it.
const UID_PARTS: [usize; 5] = [8, 4, 4, 4, 12];

/// A control group that a process is in: a line of `/proc/<pid>/cgroup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// The hierarchy, by its controllers; empty for cgroup v2.
    pub controllers: String,
    /// The group's path in its hierarchy.
    pub path: String,
}

/// The container that names say a process is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerRef {
    /// The container's id, as its runtime knows it.
    pub id: String,
    /// The UID of the Kubernetes pod, with dashes, if the names have one.
    pub pod_uid: Option<String>,
    /// Path of the container's group: up to and with the part that has the id.
    pub group: String,
    /// Where the group was seen.
    pub seen_in: SeenIn,
}

/// Where a group was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SeenIn {
    /// The process is in the group, in the hierarchy with these controllers.
    Cgroup(String),
    /// The process has the group mounted.
    Mount,
}

/// Why it cannot be found out which container a process is in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContainerError {
    /// A line is not what the kernel writes.
    #[error("malformed line in {file}: {line:?}")]
    Malformed {
        /// The file.
        file: &'static str,
        /// The line.
        line: String,
    },
    /// The groups name several containers.
    #[error("several container ids found: {0}, {1}")]
    SeveralIds(String, String),
    /// The groups name several pods.
    #[error("several pod uids found: {0}, {1}")]
    SeveralPods(String, String),
    /// A configured pattern matches, but the part for the id is not an id.
    #[error("no container id in cgroup: {0:?}")]
    NoId(String),
}

/// The lines of `/proc/<pid>/cgroup`.
///
/// # Errors
/// A line that the kernel would not write.
pub fn parse_cgroups(text: &str) -> Result<Vec<Cgroup>, ContainerError> {
    let parsed = lines(text).map(|line| {
        // Number, controllers, path; a path may have colons of its own.
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next(), fields.next(), fields.next());
        match (number, controllers, path) {
            (Some(number), Some(controllers), Some(path)) if number.parse::<u32>().is_ok() => Ok(Cgroup {
                controllers: controllers.to_owned(),
                path: path.to_owned(),
            }),
            _ => Err(malformed("cgroup", line)),
        }
    });
    parsed.collect()
}

/// The groups that are mounted, from `/proc/<pid>/mountinfo`; a whole hierarchy says nothing and is left out.
///
/// # Errors
/// A line that the kernel would not write.
pub fn parse_cgroup_mounts(text: &str) -> Result<Vec<String>, ContainerError> {
    let mut groups = Vec::new();
    for line in lines(text) {
        // Number, parent, device, root, mount point, options, any number of tags, "-", type, source, options. The
        // source may be empty, so exactly one space separates.
        let fields: Vec<&str> = line.split(' ').collect();
        let dash = fields.iter().position(|field| *field == "-");
        let kind = dash
            .filter(|dash| *dash >= 6)
            .and_then(|dash| fields.get(dash + 1))
            .filter(|kind| !kind.is_empty());
        let (Some(kind), Some(root)) = (kind, fields.get(3)) else {
            return Err(malformed("mountinfo", line));
        };
        if matches!(*kind, "cgroup" | "cgroup2") && *root != "/" {
            groups.push(unescape(root));
        }
    }
    Ok(groups)
}

/// The container that these groups name; `None` when they name none. A group that names a pod too counts more than
/// those that do not, as when a whole node is a container.
///
/// # Errors
/// When they contradict each other.
pub fn in_cgroups(groups: &[Cgroup]) -> Result<Option<ContainerRef>, ContainerError> {
    agree(
        groups
            .iter()
            .filter_map(|group| read(&group.path, SeenIn::Cgroup(group.controllers.clone()))),
    )
}

/// The container that mounted groups name, for a process whose own groups name none.
///
/// # Errors
/// When they contradict each other.
pub fn in_mounts(groups: &[String]) -> Result<Option<ContainerRef>, ContainerError> {
    agree(groups.iter().filter_map(|group| read(group, SeenIn::Mount)))
}

/// The container that a rule of the operator's finds: `id_in` gives the id's place in the path of a group.
///
/// # Errors
/// When the groups contradict each other, or what is found is no id.
pub fn by_rule(
    groups: &[Cgroup],
    id_in: impl Fn(&str) -> Option<std::ops::Range<usize>>,
) -> Result<Option<ContainerRef>, ContainerError> {
    let mut found = Vec::new();
    for group in groups {
        let Some(place) = id_in(&group.path) else { continue };
        let id = group.path.get(place.clone()).unwrap_or_default();
        if !is_name(id) {
            return Err(ContainerError::NoId(group.path.clone()));
        }
        found.push(ContainerRef {
            id: id.to_owned(),
            pod_uid: None,
            group: group.path.get(..place.end).unwrap_or_default().to_owned(),
            seen_in: SeenIn::Cgroup(group.controllers.clone()),
        });
    }
    agree(found.into_iter())
}

/// Whether the names on a path are of more than one pod, or of more than one container where pods are. A runtime makes
/// no such group, except that a node may be a container itself: what stands before the pods does not count.
pub fn names_several(path: &str) -> bool {
    let (mut pod, mut container, mut is_among_pods) = (None, None, false);
    for part in path.split('/') {
        is_among_pods |= is_kubepods(part);
        if let Some(uid) = find_pod_uid(part)
            && *pod.get_or_insert_with(|| uid.clone()) != uid
        {
            return true;
        }
        let id = find_id(part).and_then(|at| part.get(at..at + ID_DIGITS));
        if let Some(id) = id.filter(|_| is_among_pods || pod.is_some())
            && *container.get_or_insert(id) != id
        {
            return true;
        }
    }
    false
}

/// Whether a group has the name that kubelets give the one of all pods, or with systemd one within it: `kubepods`,
/// `kubepods.slice`, `kubelet-kubepods-burstable-pod<uid>.slice`.
pub fn is_kubepods(part: &str) -> bool {
    let name = part.split_once(".slice").map_or(part, |(name, _)| name);
    name.split('-').any(|word| word == "kubepods")
}

impl ContainerRef {
    /// Whether a process with these groups is in this container too. Asked about the container's first process it
    /// proves that the group is the container's own and not one that merely has its name.
    pub fn holds(&self, groups: &[Cgroup]) -> bool {
        let SeenIn::Cgroup(controllers) = &self.seen_in else {
            return false;
        };
        groups.iter().any(|group| {
            group.controllers == *controllers
                && group
                    .path
                    .strip_prefix(self.group.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }
}

fn agree(mut found: impl Iterator<Item = ContainerRef>) -> Result<Option<ContainerRef>, ContainerError> {
    let Some(mut agreed) = found.next() else {
        return Ok(None);
    };
    for next in found {
        match (&agreed.pod_uid, &next.pod_uid) {
            (None, Some(_)) => agreed = next,
            (Some(_), None) => {}
            (Some(one), Some(other)) if one != other => {
                return Err(ContainerError::SeveralPods(one.clone(), other.clone()));
            }
            _ if agreed.id != next.id => return Err(ContainerError::SeveralIds(agreed.id, next.id)),
            _ => {}
        }
    }
    Ok(Some(agreed))
}

/// Reads a path from its end: the id is in the last part that can have one, the pod before it.
fn read(path: &str, seen_in: SeenIn) -> Option<ContainerRef> {
    let mut end = path.len();
    loop {
        let start = path.get(..end)?.rfind('/').map_or(0, |slash| slash + 1);
        let part = path.get(start..end)?;
        if let Some(at) = find_id(part) {
            return Some(ContainerRef {
                id: part.get(at..at + ID_DIGITS)?.to_owned(),
                pod_uid: path.get(..start + at)?.rsplit('/').find_map(find_pod_uid),
                group: path.get(..end)?.to_owned(),
                seen_in,
            });
        }
        end = start.checked_sub(1)?;
    }
}

/// Where the first run of exactly 64 hexadecimal digits begins that is a word of its own.
fn find_id(part: &str) -> Option<usize> {
    words(part).find_map(|(at, word)| {
        (word.len() == ID_DIGITS && word.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(at)
    })
}

/// The UID in `pod<uid>`, with dashes. systemd's names have underscores in their place, which make one word of it.
fn find_pod_uid(part: &str) -> Option<String> {
    let length = UID_PARTS.iter().sum::<usize>() + UID_PARTS.len() - 1;
    part.match_indices("pod").find_map(|(at, pod)| {
        let begins = !part.get(..at)?.ends_with(is_word_char);
        let rest = part.get(at + pod.len()..)?;
        let uid = rest.get(..length)?;
        let ends = !rest.get(length..)?.starts_with(is_word_char);
        (begins && ends && is_uid(uid)).then(|| uid.replace('_', "-"))
    })
}

fn is_uid(text: &str) -> bool {
    let mut parts = text.split(['-', '_']);
    UID_PARTS.iter().all(|digits| {
        parts
            .next()
            .is_some_and(|part| part.len() == *digits && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
    }) && parts.next().is_none()
}

/// The runs of letters, digits and underscores, with where they begin.
fn words(part: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    part.split(|char| !is_word_char(char)).map(move |word| {
        // What a text was split at may be longer than a byte.
        let begin = at;
        let after = begin + word.len();
        at = after
            + part
                .get(after..)
                .and_then(|rest| rest.chars().next())
                .map_or(0, char::len_utf8);
        (begin, word)
    })
}

fn is_word_char(char: char) -> bool {
    char.is_ascii_alphanumeric() || char == '_'
}

/// What container runtimes take as an id or a name, and nothing that means more within a URL.
fn is_name(text: &str) -> bool {
    text.len() <= 255
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n').filter(|line| !line.is_empty())
}

fn malformed(file: &'static str, line: &str) -> ContainerError {
    ContainerError::Malformed {
        file,
        line: line.chars().take(200).collect(),
    }
}

/// The kernel writes blanks and backslashes in paths as a backslash and three octal digits.
fn unescape(path: &str) -> String {
    let mut plain = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let digits = after
            .get(..3)
            .filter(|digits| digits.bytes().all(|digit| matches!(digit, b'0'..=b'7')));
        let char = digits
            .and_then(|digits| u8::from_str_radix(digits, 8).ok())
            .filter(u8::is_ascii);
        match char {
            Some(byte) => {
                plain.push(char::from(byte));
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                plain.push('\\');
                rest = after;
            }
        }
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
#[path = "container_tests.rs"]
mod tests;
