//! References by which a broker names a workload (SPIFFE Broker API §3.1).

use finial_proto::spiffe::broker as pb;
use prost::{DecodeError, Message as _};
use prost_types::Any;
use uuid::Uuid;

use crate::config::{OBJECT_REFERENCE, PID_REFERENCE};

/// The longest names that Kubernetes allows: of a namespace or the plural of a type, and of an object or a group.
const MAX_LABEL_BYTES: usize = 63;
const MAX_NAME_BYTES: usize = 253;

/// The types of references that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReferenceType {
    /// `WorkloadPIDReference`: a process on this machine.
    Pid,
    /// `KubernetesObjectReference`: an object of the cluster.
    KubernetesObject,
}

/// A reference that is well-formed. Whether there is such a workload is another question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// A pid, in the pid namespace of the agent.
    Pid(i32),
    /// An object.
    KubernetesObject(KubernetesObject),
}

/// An object of Kubernetes. At least one of `key` and `uid` is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesObject {
    /// As in URLs of the API, like `pods`.
    pub plural: String,
    /// `core` for core resources.
    pub group: String,
    /// Its name, if it is given.
    pub key: Option<ObjectKey>,
    /// Its UID, if it is given; with `key`, the object of that name must have it.
    pub uid: Option<Uuid>,
}

/// The name of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectKey {
    /// `None` for a resource that is of the whole cluster.
    pub namespace: Option<String>,
    /// Within the namespace.
    pub name: String,
}

/// Why something is no reference.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// There is none.
    #[error("workload reference must be provided")]
    Missing,
    /// No such type is known.
    #[error("unknown type of workload reference: {0:?}")]
    UnknownType(String),
    /// The message cannot be read.
    #[error("workload reference is malformed: {0}")]
    Malformed(#[from] DecodeError),
    /// A pid is a positive number.
    #[error("workload reference: pid must be positive: {0}")]
    Pid(i32),
    /// A field is missing.
    #[error("workload reference: {0} must be set")]
    Unset(&'static str),
    /// A field is longer than Kubernetes allows.
    #[error("workload reference: {field} has {length} bytes")]
    TooLong {
        /// Which.
        field: &'static str,
        /// Its length in bytes.
        length: usize,
    },
    /// A UID is a UUID.
    #[error("workload reference: uid is not a UUID")]
    Uid,
}

impl ReferenceType {
    /// The type that `Any` names.
    pub fn of_url(type_url: &str) -> Option<Self> {
        [Self::Pid, Self::KubernetesObject]
            .into_iter()
            .find(|known| known.url() == type_url)
    }

    /// How `Any` and the configuration name it.
    pub fn url(self) -> &'static str {
        match self {
            Self::Pid => PID_REFERENCE,
            Self::KubernetesObject => OBJECT_REFERENCE,
        }
    }

    /// The type of a reference, which is known before its content is looked at.
    ///
    /// # Errors
    /// [`ReferenceError::Missing`], [`ReferenceError::UnknownType`].
    pub fn of(reference: &Any) -> Result<Self, ReferenceError> {
        if reference.type_url.is_empty() {
            return Err(ReferenceError::Missing);
        }
        Self::of_url(&reference.type_url)
            .ok_or_else(|| ReferenceError::UnknownType(shortened(&reference.type_url)))
    }

    /// Reads a reference of this type.
    ///
    /// # Errors
    /// [`ReferenceError`].
    pub fn parse(self, value: &[u8]) -> Result<Reference, ReferenceError> {
        match self {
            Self::Pid => match pb::WorkloadPidReference::decode(value)?.pid {
                pid @ 1.. => Ok(Reference::Pid(pid)),
                pid => Err(ReferenceError::Pid(pid)),
            },
            Self::KubernetesObject => {
                let read = pb::KubernetesObjectReference::decode(value)?;
                KubernetesObject::read(read).map(Reference::KubernetesObject)
            }
        }
    }
}

impl Reference {
    /// Its type.
    pub fn kind(&self) -> ReferenceType {
        match self {
            Self::Pid(_) => ReferenceType::Pid,
            Self::KubernetesObject(_) => ReferenceType::KubernetesObject,
        }
    }
}

impl KubernetesObject {
    fn read(message: pb::KubernetesObjectReference) -> Result<Self, ReferenceError> {
        let pb::KubernetesObjectReference { r#type, key, uid } = message;
        let r#type = r#type.ok_or(ReferenceError::Unset("type"))?;
        if key.is_none() && uid.is_empty() {
            return Err(ReferenceError::Unset("key or uid"));
        }
        let uid = match uid.as_str() {
            "" => None,
            text => Some(Uuid::try_parse(text).map_err(|_error| ReferenceError::Uid)?),
        };
        Ok(Self {
            plural: set(r#type.plural, "type.plural", MAX_LABEL_BYTES)?,
            group: set(r#type.group, "type.group", MAX_NAME_BYTES)?,
            key: key.map(ObjectKey::read).transpose()?,
            uid,
        })
    }
}

impl ObjectKey {
    fn read(key: pb::KubernetesObjectKey) -> Result<Self, ReferenceError> {
        let namespace = match key.namespace.as_str() {
            "" => None,
            _ => Some(set(key.namespace, "key.namespace", MAX_LABEL_BYTES)?),
        };
        Ok(Self {
            namespace,
            name: set(key.name, "key.name", MAX_NAME_BYTES)?,
        })
    }
}

fn set(text: String, field: &'static str, longest: usize) -> Result<String, ReferenceError> {
    match text.len() {
        0 => Err(ReferenceError::Unset(field)),
        length if length > longest => Err(ReferenceError::TooLong { field, length }),
        _ => Ok(text),
    }
}

/// Anybody can make up names; they come back in an error and a log line.
fn shortened(type_url: &str) -> String {
    type_url.chars().take(MAX_NAME_BYTES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f1b4a4e-94f1-4f0d-8a0a-3a2f7d7f6f3a";

    fn parsed(kind: ReferenceType, message: &impl prost::Message) -> Result<Reference, String> {
        kind.parse(&message.encode_to_vec())
            .map_err(|error| error.to_string())
    }

    fn object(key: Option<(&str, &str)>, uid: &str) -> pb::KubernetesObjectReference {
        pb::KubernetesObjectReference {
            r#type: Some(pb::KubernetesObjectType {
                plural: "pods".to_owned(),
                group: "core".to_owned(),
            }),
            key: key.map(|(namespace, name)| pb::KubernetesObjectKey {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }),
            uid: uid.to_owned(),
        }
    }

    /// Covers BRK-15.
    #[test]
    fn a_pid_is_positive() {
        let pid = |pid| parsed(ReferenceType::Pid, &pb::WorkloadPidReference { pid });
        assert_eq!(pid(1), Ok(Reference::Pid(1)));
        assert_eq!(pid(i32::MAX), Ok(Reference::Pid(i32::MAX)));
        for wrong in [0, -1, i32::MIN] {
            assert!(pid(wrong).unwrap_err().contains("pid must be positive"));
        }
        assert!(ReferenceType::Pid.parse(&[0xff]).is_err());
    }

    #[test]
    fn an_object_has_a_type_and_a_name_or_a_uid() {
        let read = |message| parsed(ReferenceType::KubernetesObject, &message);
        let Reference::KubernetesObject(pod) = read(object(Some(("shop", "web")), UID)).unwrap() else {
            panic!("an object")
        };
        assert_eq!((pod.plural.as_str(), pod.group.as_str()), ("pods", "core"));
        let key = pod.key.unwrap();
        assert_eq!(
            (key.namespace.as_deref(), key.name.as_str()),
            (Some("shop"), "web")
        );
        assert_eq!(pod.uid.unwrap().to_string(), UID);
        assert!(read(object(Some(("", "node-1")), "")).is_ok());
        assert!(read(object(None, UID)).is_ok());

        let long = "a".repeat(254);
        for (wrong, why) in [
            (object(None, ""), "key or uid"),
            (object(Some(("shop", "")), UID), "key.name"),
            (object(Some(("shop", &long)), ""), "254 bytes"),
            (object(Some((&long, "web")), ""), "key.namespace"),
            (object(None, "web"), "not a UUID"),
            (pb::KubernetesObjectReference::default(), "type must be set"),
            (
                pb::KubernetesObjectReference {
                    r#type: Some(pb::KubernetesObjectType::default()),
                    ..object(None, UID)
                },
                "type.plural",
            ),
        ] {
            let error = read(wrong).unwrap_err();
            assert!(error.contains(why), "{why} in {error}");
        }
    }

    #[test]
    fn a_type_is_known_by_its_whole_name() {
        let of = |type_url: &str| {
            ReferenceType::of(&Any {
                type_url: type_url.to_owned(),
                value: Vec::new(),
            })
            .map_err(|error| error.to_string())
        };
        for known in [ReferenceType::Pid, ReferenceType::KubernetesObject] {
            assert_eq!(of(known.url()), Ok(known));
        }
        assert_eq!(of("").unwrap_err(), "workload reference must be provided");
        for unknown in [
            "spiffe.broker.WorkloadPIDReference",
            "*",
            "type.googleapis.com/a.B",
        ] {
            assert!(of(unknown).unwrap_err().contains("unknown type"), "{unknown}");
        }
        assert!(of(&"x".repeat(10_000)).unwrap_err().len() < 400);
    }
}
