//! The server's volume, and what an upgrade may not change. `lookup` finds nothing without a cluster, so a copy of the chart
//! looks at a StatefulSet among the values; `tests/cluster` upgrades a real one.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::engine::{Engine, NEW, Rendered, chart, engine, merge};
use crate::sets::required;

/// How templates ask for the StatefulSet that is there.
const LOOKUP: &str = r#"lookup "apps/v1" "StatefulSet" (include "finial.server.namespace" .) (include "finial.server.name" .)"#;

#[test]
fn a_change_of_the_volume_is_refused_and_named() {
    let Some(engine) = engine() else { return };
    let upgrade = Upgrade::new(engine);
    let made = |persistence: Value| upgrade.made(json!({"persistence": persistence}));
    let usual = made(json!({}));
    let fast = made(json!({"storageClass": "fast", "accessMode": "ReadWriteOncePod"}));
    let by_hand = made(json!({"storageClass": ""}));
    let without = made(json!({"type": "emptyDir"}));
    for (existing, persistence, says) in [
        (&usual, json!({}), ""),
        (
            &fast,
            json!({"storageClass": "fast", "accessMode": "ReadWriteOncePod"}),
            "",
        ),
        (&by_hand, json!({"storageClass": ""}), ""),
        (&without, json!({"type": "emptyDir"}), ""),
        (&without, json!({"type": "emptyDir", "size": "2Gi"}), ""),
        // Kubernetes writes 1Gi for each of these.
        (&usual, json!({"size": "1024Mi"}), ""),
        (&usual, json!({"size": "1.0Gi"}), ""),
        (&usual, json!({"size": "1073741824"}), ""),
        (
            &usual,
            json!({"size": "2Gi"}),
            "size is 1Gi and cannot become 2Gi",
        ),
        (&usual, json!({"size": "1G"}), "size is 1Gi and cannot become 1G"),
        (
            &usual,
            json!({"size": "much"}),
            "size is 1Gi and cannot become much",
        ),
        (
            &usual,
            json!({"type": "emptyDir"}),
            "type is pvc and cannot become emptyDir",
        ),
        (&without, json!({}), "type is emptyDir and cannot become pvc"),
        (
            &usual,
            json!({"accessMode": "ReadWriteOncePod"}),
            "accessMode is ReadWriteOnce and cannot become ReadWriteOncePod",
        ),
        (
            &usual,
            json!({"storageClass": "fast"}),
            "storageClass is the cluster's own and cannot become fast",
        ),
        (
            &fast,
            json!({"accessMode": "ReadWriteOncePod"}),
            "storageClass is fast and cannot become the cluster's own",
        ),
        // Nobody makes a volume for an empty class, and Kubernetes tells it from none.
        (
            &usual,
            json!({"storageClass": ""}),
            "storageClass is the cluster's own and cannot become \"\"",
        ),
        (
            &by_hand,
            json!({}),
            "storageClass is \"\" and cannot become the cluster's own",
        ),
        (
            &by_hand,
            json!({"storageClass": "fast"}),
            "storageClass is \"\" and cannot become fast",
        ),
    ] {
        let refused = upgrade
            .to(existing, &json!({"spire-server": {"persistence": persistence}}))
            .map(drop);
        match says {
            "" => assert_eq!(refused, Ok(()), "{persistence}"),
            says => {
                let error = refused.expect_err(says);
                let says = format!("spire-server.persistence.{says}: Kubernetes does not change");
                assert!(error.contains(&says), "{persistence}: {error}");
            }
        }
    }
}

#[test]
fn the_class_of_all_volumes_is_that_of_a_server_that_names_none() {
    let Some(engine) = engine() else { return };
    for (own, of_all, is) in [
        (json!(null), json!(null), None),
        (json!(null), json!("all"), Some("all")),
        (json!(null), json!(""), Some("")),
        (json!("own"), json!("all"), Some("own")),
        (json!(""), json!("all"), Some("")),
        (json!(""), json!(null), Some("")),
    ] {
        let values = json!({
            "global": {"spire": {"persistence": {"storageClass": of_all}}},
            "spire-server": {"persistence": {"storageClass": own}},
        });
        let upgrade = Upgrade::new(engine);
        let made = upgrade.to(&Value::Null, &values).expect("renders");
        let set = made.named("StatefulSet", "finial-server");
        let claim = &set["spec"]["volumeClaimTemplates"][0]["spec"];
        let class = claim
            .get("storageClassName")
            .map(|class| class.as_str().expect("a text"));
        assert_eq!(class, is, "{values}");
        assert!(upgrade.to(set, &values).is_ok(), "{values}");
    }
}

/// Kubernetes does not change it, and with `OrderedReady` a rollback waits for ever for a pod that never became ready.
#[test]
fn pods_are_managed_in_parallel_and_in_an_upgrade_as_they_were() {
    let Some(engine) = engine() else { return };
    let upgrade = Upgrade::new(engine);
    let mut set = upgrade.made(json!({}));
    assert_eq!(set["spec"]["podManagementPolicy"], "Parallel");
    for policy in ["OrderedReady", "Parallel"] {
        set["spec"]["podManagementPolicy"] = json!(policy);
        let upgraded = upgrade.to(&set, &json!({})).expect("renders");
        let upgraded = upgraded.named("StatefulSet", "finial-server");
        assert_eq!(upgraded["spec"]["podManagementPolicy"], policy);
    }
}

/// A copy of the chart that finds a StatefulSet.
struct Upgrade<'e> {
    engine: &'e Engine,
    folder: TempDir,
}

impl<'e> Upgrade<'e> {
    fn new(engine: &'e Engine) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        copy_folder(&chart(), folder.path());
        fs::remove_file(folder.path().join("values.schema.json")).expect("the schema refuses another value");
        for name in ["validate.yaml", "server/statefulset.yaml"] {
            let path = folder.path().join("templates").join(name);
            let text = fs::read_to_string(&path).expect("a template is text");
            assert_eq!(text.matches(LOOKUP).count(), 1, "{name}");
            fs::write(path, text.replace(LOOKUP, ".Values.there")).expect("write a template");
        }
        Self { engine, folder }
    }

    /// What the chart makes where this StatefulSet is, or null.
    fn to(&self, there: &Value, values: &Value) -> Result<Rendered, String> {
        let mut all = required();
        merge(&mut all, values);
        merge(&mut all, &json!({"there": there}));
        self.engine.render_chart(self.folder.path(), NEW, &all)
    }

    /// The StatefulSet where there is none.
    fn made(&self, server: Value) -> Value {
        let rendered = self.to(&Value::Null, &json!({"spire-server": server}));
        let rendered = rendered.expect("renders");
        rendered.named("StatefulSet", "finial-server").clone()
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("make a folder");
    for entry in fs::read_dir(from).expect("a folder of the chart") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            fs::copy(&path, &target).expect("copy a file");
        }
    }
}
