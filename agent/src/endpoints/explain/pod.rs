//! A pod as whoever calls on its own socket is known.

use std::sync::Arc;

use finial_identity::process::Stop;
use time::OffsetDateTime;
use tonic::Status;

use crate::socket_tree::{PodRecord, SocketTree};
use crate::workload::k8s;
use crate::workload::pods::is_same_uid;
use crate::workload::{Pod, Process};

/// More than any UID of a pod has.
const LONGEST_UID: usize = 64;

/// The pod with this UID, as its folder tells.
///
/// # Errors
/// `INVALID_ARGUMENT` when it is too long to be one; `NOT_FOUND` when it has no folder; `UNAVAILABLE` when that cannot be read.
pub(super) fn find(tree: &SocketTree, uid: &str, stop: Stop) -> Result<Arc<Pod>, Status> {
    if uid.len() > LONGEST_UID {
        return Err(Status::invalid_argument(format!(
            "UID of a pod is longer than {LONGEST_UID} bytes"
        )));
    }
    let unreadable = |error: &dyn std::fmt::Display| {
        Status::unavailable(format!("folder of the pod's socket cannot be read: {error}"))
    };
    let uids = tree.uids().map_err(|error| unreadable(&error))?;
    // What is no UID of a pod is no name of a folder either.
    let uid = uids.iter().find(|known| is_same_uid(known, uid)).ok_or_else(|| {
        Status::not_found(format!(
            "no pod of this node has a socket of its own and the UID {uid:?}"
        ))
    })?;
    let record = PodRecord::load(tree, uid).map_err(|error| unreadable(&error))?;
    let since = std::fs::metadata(tree.record_of(uid)).and_then(|metadata| metadata.modified());
    let since = since.ok().map(OffsetDateTime::from);
    Ok(Arc::new(Pod::new(record, since, 0, stop)))
}

/// The pod whose control groups a process is in; none when it is in those of none, or they cannot be understood.
pub(super) fn uid_of(process: &Process) -> Option<String> {
    k8s::pod_uid(process.procfs(), process.pid())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // Tests lay out files by hand.
    use finial_identity::process::TaskSet;
    use tonic::Code;

    use super::*;

    const UID: &str = "7d8fb3a5-25a7-4c0b-9ab1-4e2f1bd4a9b1";

    #[test]
    fn a_pod_is_found_by_its_folder_however_its_uid_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let tree = SocketTree::open(dir.path()).unwrap();
        let record = PodRecord {
            uid: UID.to_owned(),
            namespace: "shop".to_owned(),
            name: "web-0".to_owned(),
            service_account: "web".to_owned(),
        };
        std::fs::create_dir(tree.pod(UID)).unwrap();
        let of = |uid: &str| find(&tree, uid, TaskSet::new().stop_signal());
        assert_eq!(of(UID).unwrap_err().code(), Code::Unavailable);
        std::fs::write(tree.record_of(UID), record.to_json().unwrap()).unwrap();
        assert_eq!(of(UID).unwrap().record(), &record);
        assert_eq!(of(&UID.replace('-', "_")).unwrap().record(), &record);
        for other in ["", "..", "0a1b", "../pods"] {
            assert_eq!(of(other).unwrap_err().code(), Code::NotFound, "{other}");
        }
    }
}
