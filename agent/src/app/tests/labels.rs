//! Types of folders, by attributes as SELinux has them, which root may set on a node without it too.

use rustix::fs::{XattrFlags, getxattr, setxattr};
use rustix::io::Errno;

use super::*;

const ATTRIBUTE: &str = "security.selinux";

/// The type in the label of a file.
fn type_of(path: &Path) -> String {
    let mut label = [0; 256];
    let length = getxattr(path, ATTRIBUTE, &mut label).unwrap();
    let label = String::from_utf8(label[..length].to_vec()).unwrap();
    label.split(':').nth(2).unwrap().to_owned()
}

#[tokio::test]
async fn folders_of_sockets_are_labelled_and_what_is_beside_a_private_one_is_not() {
    let setup = Setup::new();
    let path = |name: &str| setup.dir.path().join(name);
    let folders = ["agent", "agent/public", "private/admin", "private/broker", "csi"];
    let beside = ["private", "private/admin/other", "private/broker/other"];
    for name in folders.iter().chain(&beside) {
        std::fs::create_dir_all(path(name)).unwrap();
        let label = b"system_u:object_r:var_run_t:s0";
        match setxattr(path(name), ATTRIBUTE, label, XattrFlags::empty()) {
            Err(Errno::PERM | Errno::NOTSUP) => {
                eprintln!("skipped: these labels cannot be set here");
                return;
            }
            set => set.unwrap(),
        }
    }
    let keys = format!(
        r#"admin_socket_path = {:?} selinux {{ socket_type = "container_file_t" }} csi {{ socket_dir = {:?} }}
        experimental {{ broker {{ socket_path = {:?} brokers = [{{
            id = "spiffe://example.org/broker"
            allowed_reference_types = [{{ type_url = "*" }}]
        }}] }} }}"#,
        path("private/admin/admin.sock"),
        path("csi"),
        path("private/broker/broker.sock"),
    );
    let config = setup.of_a_cluster(&keys, "\"memory\" {}");
    let _agent = build(config, Clock::system(), log()).await.unwrap();
    let types = |names: &[&str]| names.iter().map(|name| type_of(&path(name))).collect::<Vec<_>>();
    let [agent, labelled @ ..] = folders;
    assert_eq!(types(&labelled), ["container_file_t"; 4]);
    assert_eq!(types(&[agent]), ["var_run_t"]);
    assert_eq!(types(&beside), ["var_run_t"; 3]);
}
