//! The objects, and the history of their changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};
use tokio::sync::Notify;

use super::path::plural;

type Answer = Arc<dyn Fn(Value) -> Value + Send + Sync>;

/// Plural, namespace, name.
type Key = (String, String, String);

#[derive(Default)]
pub(super) struct State {
    inner: Mutex<Inner>,
    pub(super) news: Notify,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Inner {
    version: u64,
    uids: u64,
    objects: BTreeMap<Key, Value>,
    /// The same as JSON, for lists of thousands.
    texts: BTreeMap<Key, Arc<str>>,
    history: Vec<Change>,
    /// Versions up to this one are forgotten.
    floor: u64,
    /// Grows when open watches must end.
    generation: u64,
    is_out: bool,
    is_hanging: bool,
    /// How many requests were taken and will never be answered.
    hung: u64,
    hidden: BTreeSet<String>,
    answers: BTreeMap<String, Answer>,
}

#[derive(Clone)]
struct Change {
    version: u64,
    plural: String,
    namespace: String,
    event: Value,
}

/// One page of a list.
pub(super) struct Page {
    pub(super) items: Vec<Arc<str>>,
    /// Of the whole list.
    pub(super) version: u64,
    /// Where the next page begins; none after the last one.
    pub(super) next: Option<Continue>,
}

/// The place in a list after a page, which clients hand back as they got it.
#[derive(Debug, PartialEq)]
pub(super) struct Continue {
    version: u64,
    namespace: String,
    name: String,
}

impl Continue {
    pub(super) fn parse(token: &str) -> Option<Self> {
        let mut parts = token.splitn(3, '.');
        Some(Self {
            version: parts.next()?.parse().ok()?,
            namespace: parts.next()?.to_owned(),
            name: parts.next()?.to_owned(),
        })
    }

    pub(super) fn token(&self) -> String {
        // Namespaces have no dots.
        format!("{}.{}.{}", self.version, self.namespace, self.name)
    }
}

/// What a watch finds.
pub(super) enum Watched {
    Events(Vec<Value>, u64),
    Expired,
    Ended,
}

impl State {
    pub(super) fn put(&self, object: Value) -> Value {
        let plural = plural(object["kind"].as_str().expect("an object has a kind"));
        self.store(&plural, object, true)
    }

    /// Stores objects in one go, as users do.
    pub(super) fn put_all(&self, objects: Vec<Value>) {
        let mut inner = self.lock();
        for object in objects {
            let plural = plural(object["kind"].as_str().expect("an object has a kind"));
            inner.store(&plural, object, true);
        }
        drop(inner);
        self.news.notify_waiters();
    }

    /// Stores an object; a user keeps the status that is there.
    pub(super) fn store(&self, plural: &str, object: Value, keeps_status: bool) -> Value {
        let stored = self.lock().store(plural, object, keeps_status);
        self.news.notify_waiters();
        stored
    }

    pub(super) fn delete(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let mut inner = self.lock();
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        let mut object = inner.objects.remove(&key)?;
        inner.texts.remove(&key);
        inner.version += 1;
        object["metadata"]["resourceVersion"] = json!(inner.version.to_string());
        inner.log(key, "DELETED", object.clone());
        drop(inner);
        self.news.notify_waiters();
        Some(object)
    }

    pub(super) fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        self.lock().objects.get(&key).cloned()
    }

    pub(super) fn list(&self, plural: &str) -> Vec<Value> {
        let inner = self.lock();
        let found = inner.objects.iter().filter(|((of, ..), _)| of == plural);
        found.map(|(_, object)| object.clone()).collect()
    }

    /// The objects of a kind, in a namespace or in all, as JSON and as a list call shows them; none for a page of a list
    /// whose beginning is forgotten.
    pub(super) fn shown(
        &self,
        plural: &str,
        namespace: &str,
        limit: usize,
        from: Option<&Continue>,
    ) -> Option<Page> {
        let inner = self.lock();
        let version = from.map_or(inner.version, |from| from.version);
        if version < inner.floor {
            return None;
        }
        let mut page = Page {
            items: Vec::new(),
            version,
            next: None,
        };
        if inner.hidden.contains(plural) {
            return Some(page);
        }
        let found = inner.texts.iter().filter(|((of, inside, name), _)| {
            of == plural
                && (namespace.is_empty() || inside == namespace)
                && from.is_none_or(|from| (inside, name) > (&from.namespace, &from.name))
        });
        for ((_, inside, name), text) in found {
            if page.items.len() == limit {
                return Some(page);
            }
            page.items.push(Arc::clone(text));
            page.next = Some(Continue {
                version,
                namespace: inside.clone(),
                name: name.clone(),
            });
        }
        page.next = None;
        Some(page)
    }

    /// Events after a version.
    pub(super) fn events(&self, plural: &str, namespace: &str, after: u64, generation: u64) -> Watched {
        let inner = self.lock();
        if inner.is_out || inner.generation != generation {
            return Watched::Ended;
        }
        if after < inner.floor {
            return Watched::Expired;
        }
        // In the order of versions, so that a long history costs a watch nothing.
        let first = inner.history.partition_point(|change| change.version <= after);
        let found = inner.history[first..].iter().filter(|change| {
            change.plural == plural && (namespace.is_empty() || change.namespace == namespace)
        });
        Watched::Events(found.map(|change| change.event.clone()).collect(), inner.version)
    }

    pub(super) fn generation(&self) -> u64 {
        self.lock().generation
    }

    pub(super) fn is_out(&self) -> bool {
        self.lock().is_out
    }

    pub(super) fn answer(&self, plural: &str) -> Option<Answer> {
        self.lock().answers.get(plural).cloned()
    }

    pub(super) fn on_create(&self, plural: &str, answer: Answer) {
        self.lock().answers.insert(plural.to_owned(), answer);
    }

    pub(super) fn outage(&self, is_out: bool) {
        self.lock().is_out = is_out;
        self.break_watches();
    }

    pub(super) fn hang(&self, is_hanging: bool) {
        self.lock().is_hanging = is_hanging;
    }

    /// Whether a request that has just come is never answered.
    pub(super) fn hangs(&self) -> bool {
        let mut inner = self.lock();
        inner.hung += u64::from(inner.is_hanging);
        inner.is_hanging
    }

    pub(super) fn hung(&self) -> u64 {
        self.lock().hung
    }

    pub(super) fn break_watches(&self) {
        self.lock().generation += 1;
        self.news.notify_waiters();
    }

    pub(super) fn forget_history(&self) {
        let mut inner = self.lock();
        inner.history.clear();
        inner.version += 1;
        inner.floor = inner.version;
        drop(inner);
        self.break_watches();
    }

    pub(super) fn hide_from_lists(&self, plural: &str, is_hidden: bool) {
        let mut inner = self.lock();
        if is_hidden {
            inner.hidden.insert(plural.to_owned());
        } else {
            inner.hidden.remove(plural);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nobody panics while holding the lock")
    }
}

impl Inner {
    fn store(&mut self, plural: &str, mut object: Value, keeps_status: bool) -> Value {
        self.version += 1;
        let version = self.version;
        let key = key(plural, &object);
        let before = self.objects.get(&key).cloned();
        let meta = &mut object["metadata"];
        meta["resourceVersion"] = json!(version.to_string());
        match &before {
            Some(before) => {
                for field in ["uid", "creationTimestamp"] {
                    if meta.get(field).is_none() {
                        meta[field] = before["metadata"][field].clone();
                    }
                }
            }
            None => {
                if meta.get("uid").is_none() {
                    self.uids += 1;
                    meta["uid"] = json!(format!("00000000-0000-4000-8000-{:012}", self.uids));
                }
                if meta.get("creationTimestamp").is_none() {
                    let second = version % 60;
                    meta["creationTimestamp"] =
                        json!(format!("2026-01-01T00:{:02}:{second:02}Z", version / 60 % 60));
                }
            }
        }
        let spec_changed = before
            .as_ref()
            .is_none_or(|before| before["spec"] != object["spec"]);
        let generation = before
            .as_ref()
            .and_then(|before| before["metadata"]["generation"].as_i64());
        let generation = generation.unwrap_or_default() + i64::from(spec_changed);
        object["metadata"]["generation"] = json!(generation);
        if keeps_status && let Some(status) = before.as_ref().and_then(|before| before.get("status")) {
            object["status"] = status.clone();
        }
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.objects.insert(key.clone(), object.clone());
        self.texts.insert(key.clone(), object.to_string().into());
        self.log(key, kind, object.clone());
        object
    }

    fn log(&mut self, (plural, namespace, _): Key, kind: &str, object: Value) {
        self.history.push(Change {
            version: self.version,
            plural,
            namespace,
            event: json!({"type": kind, "object": object}),
        });
    }
}

fn key(plural: &str, object: &Value) -> Key {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (plural.to_owned(), text("namespace"), text("name"))
}
