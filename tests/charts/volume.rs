//! What an upgrade may not change: the claim template of a StatefulSet that is there. `lookup` finds nothing without a
//! cluster, so a copy of the chart asks the same question of a StatefulSet that stands in a template; `tests/cluster` upgrades
//! a real one.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::engine::{NEW, chart, engine, merge};
use crate::sets::required;

const ASKING: &str = r#"
kind: Answer
change: {{ include "finial.persistence.change" (dict "root" . "current" .Values.podLabels) | quote }}
"#;

#[test]
fn a_change_of_the_volume_is_found_and_named() {
    let Some(engine) = engine() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let copy = folder.path().join("finial");
    copy_folder(&chart(), &copy);
    fs::remove_file(copy.join("values.schema.json")).expect("the schema refuses the question's value");
    fs::write(copy.join("templates/zz-asking.yaml"), ASKING).expect("write a template");
    let change = |existing: &Value, persistence: Value| {
        let mut values = required();
        merge(
            &mut values,
            &json!({"podLabels": existing, "spire-server": {"persistence": persistence}}),
        );
        let rendered = engine.render_chart(&copy, NEW, &values).expect("renders");
        let mut answers = rendered.of_kind("Answer");
        let answer = answers.next().expect("an answer");
        answer["change"].as_str().expect("a text").to_owned()
    };
    let made = |persistence: Value| {
        let mut values = required();
        merge(
            &mut values,
            &json!({"spire-server": {"persistence": persistence}}),
        );
        let rendered = engine.render(&values).expect("renders");
        rendered.named("StatefulSet", "finial-server").clone()
    };
    let usual = made(json!({}));
    let fast = made(json!({"storageClass": "fast", "accessMode": "ReadWriteOncePod"}));
    let without = made(json!({"type": "emptyDir"}));
    for (existing, persistence, says) in [
        (&usual, json!({}), ""),
        (
            &fast,
            json!({"storageClass": "fast", "accessMode": "ReadWriteOncePod"}),
            "",
        ),
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
    ] {
        assert_eq!(change(existing, persistence.clone()), says, "{persistence}");
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
