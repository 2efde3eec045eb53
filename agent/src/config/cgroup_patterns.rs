//! `container_id_cgroup_matchers` of `WorkloadAttestor "docker"`: where the id of a container is in the path
//! of its control group, for paths that are not recognised otherwise.

use std::ops::Range;

/// Stands for any part of a path.
const ANY: &str = "*";
/// Stands for the part that is the id.
const ID: &str = "<id>";

/// Patterns of which at most one fits a path. A pattern is a path in which `*` matches any one part and
/// `<id>`, exactly once, for the container's id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupPatterns {
    patterns: Vec<String>,
}

/// Why patterns are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CgroupPatternError {
    /// It is not said where the id stands, or more than once.
    #[error("pattern {0:?} must contain the container id token \"<id>\" exactly once")]
    NotOneId(String),
    /// One path could fit both.
    #[error("patterns must not be ambiguous: {0:?}, {1:?}")]
    Ambiguous(String, String),
}

impl CgroupPatterns {
    /// Checks patterns.
    ///
    /// # Errors
    /// [`CgroupPatternError`].
    pub fn new(patterns: Vec<String>) -> Result<Self, CgroupPatternError> {
        for (index, pattern) in patterns.iter().enumerate() {
            if pattern.split('/').filter(|part| *part == ID).count() != 1 {
                return Err(CgroupPatternError::NotOneId(pattern.clone()));
            }
            if let Some(other) = patterns
                .iter()
                .take(index)
                .find(|other| may_fit_both(other, pattern))
            {
                return Err(CgroupPatternError::Ambiguous(other.clone(), pattern.clone()));
            }
        }
        Ok(Self { patterns })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Where the id is in this path, if a pattern fits it.
    pub fn id_in(&self, path: &str) -> Option<Range<usize>> {
        self.patterns.iter().find_map(|pattern| fit(pattern, path))
    }
}

fn fit(pattern: &str, path: &str) -> Option<Range<usize>> {
    let (mut patterns, mut parts) = (pattern.split('/'), path.split('/'));
    let (mut at, mut id) = (0, None);
    loop {
        let (expected, part) = match (patterns.next(), parts.next()) {
            (None, None) => return id,
            (expected, part) => (expected?, part?),
        };
        match expected {
            ID => id = Some(at..at + part.len()),
            ANY => {}
            exact if exact == part => {}
            _ => return None,
        }
        at += part.len() + 1;
    }
}

fn may_fit_both(one: &str, other: &str) -> bool {
    let is_open = |part: &str| part == ANY || part == ID;
    one.split('/').count() == other.split('/').count()
        && one
            .split('/')
            .zip(other.split('/'))
            .all(|(one, other)| one == other || is_open(one) || is_open(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(list: &[&str]) -> Result<CgroupPatterns, CgroupPatternError> {
        CgroupPatterns::new(list.iter().map(|text| (*text).to_owned()).collect())
    }

    #[test]
    fn finds_the_part_that_stands_for_the_id() {
        let patterns = patterns(&["/docker/<id>", "/my.slice/*/<id>/*"]).unwrap();
        for (path, id) in [
            ("/docker/foo", Some("foo")),
            ("/docker/", Some("")),
            ("/my.slice/a/foo/b", Some("foo")),
            ("/my.slice/a/foo", None),
            ("/my.slice/a/foo/b/c", None),
            ("/myxslice/a/foo/b", None),
            ("docker/foo", None),
            ("/", None),
            ("", None),
        ] {
            assert_eq!(patterns.id_in(path).map(|place| &path[place]), id, "{path}");
        }
    }

    #[test]
    fn patterns_without_one_id_are_refused() {
        for pattern in ["/docker/*", "/<id>/<id>", "", "/docker-<id>"] {
            assert_eq!(
                patterns(&[pattern]),
                Err(CgroupPatternError::NotOneId(pattern.to_owned()))
            );
        }
    }

    #[test]
    fn patterns_that_may_fit_the_same_path_are_refused() {
        for (one, other) in [
            ("/a/b/<id>", "/*/b/<id>"),
            ("/a/<id>", "/a/<id>"),
            ("/<id>/a", "/b/<id>"),
        ] {
            let error = patterns(&[one, "/x/y/z/<id>", other]).unwrap_err();
            assert_eq!(
                error,
                CgroupPatternError::Ambiguous(one.to_owned(), other.to_owned())
            );
        }
        assert!(patterns(&["/a/<id>", "/b/<id>", "/a/b/<id>"]).is_ok());
    }
}
