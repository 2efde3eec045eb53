//! The image and the pods that run it.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use finial_tests::image_like_dockerfile;
use serde_json::{Value, json};

use crate::engine::{engine, repository};
use crate::sets::{required, sets};

#[test]
fn the_image_has_one_program_and_neither_shell_nor_root() {
    let text = fs::read_to_string(repository().join("Dockerfile")).expect("a Dockerfile");
    let (_, last) = text.rsplit_once("\nFROM ").expect("stages");
    assert!(last.starts_with("scratch"), "{last}");
    assert!(last.contains("\nUSER 1000:1000\n"), "{last}");
    assert!(last.contains("\nENTRYPOINT [\"/usr/bin/finial\"]"), "{last}");
    assert!(!last.contains("\nRUN "), "an empty image has no shell: {last}");
    // Not linked against libraries that an empty image has not.
    assert!(text.contains("target-feature=+crt-static"));
    assert!(text.contains("--locked"));
    // Where the program looks for the authorities of the Web.
    assert!(text.contains(" /image/etc/ssl/certs/ca-certificates.crt"));
}

/// The image that tests run in a cluster is made without a builder, and so only as good as this.
#[test]
fn the_image_of_the_tests_is_laid_out_as_the_dockerfile_says() {
    let text = fs::read_to_string(repository().join("Dockerfile")).expect("a Dockerfile");
    let (build, last) = text.rsplit_once("\nFROM ").expect("stages");
    assert!(last.contains("\nCOPY --from=build /image/ /\n"), "{last}");
    let mut expected = BTreeMap::new();
    for line in build.lines() {
        let words: Vec<&str> = line.trim_start_matches(" &&").split_whitespace().collect();
        let place = |word: &str| {
            word.trim_matches(['"', '\\'])
                .strip_prefix("/image")
                .map(str::to_owned)
        };
        match words[..] {
            ["install", "-D", "-m", mode, _source, target, ..] => {
                expected.insert(
                    place(target).expect("below /image"),
                    json!(["0", mode.parse::<u32>().ok()]),
                );
            }
            ["install", "-D", _source, target, ..] => {
                expected.insert(place(target).expect("below /image"), json!(["0", 755]));
            }
            ["ln", "-s", target, link, ..] => {
                expected.insert(place(link).expect("below /image"), json!(["2", target]));
            }
            _ => {}
        }
    }
    assert_eq!(expected.len(), 4, "{expected:?}");

    let folder = tempfile::tempdir().expect("a temporary folder");
    let (program, image) = (folder.path().join("program"), folder.path().join("image.tar"));
    fs::write(&program, "a static program").expect("a program");
    let python = |words: &[&str]| {
        let output = Command::new("python3").args(words).output().expect("python3");
        let printed = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{printed}");
        output.stdout
    };
    let maker = repository().join("tests/cluster/image.py").display().to_string();
    let image = image.display().to_string();
    let options = image_like_dockerfile(&program);
    let mut words = vec![maker.as_str(), &image, "finial/finial:test"];
    words.extend(options.iter().map(String::as_str));
    python(&words);
    let read: Value = serde_json::from_slice(&python(&["-c", READ_IMAGE, &image])).expect("JSON");
    let found: BTreeMap<String, Value> = serde_json::from_value(read["files"].clone()).expect("files");
    assert_eq!(found, expected);

    let after = |word: &str| {
        let line = last.lines().find_map(|line| line.strip_prefix(word));
        line.unwrap_or_else(|| panic!("no {word}: {last}"))
            .trim()
            .to_owned()
    };
    let config = &read["config"];
    assert_eq!(config["User"], after("USER"));
    assert_eq!(
        config["Entrypoint"],
        serde_json::from_str::<Value>(&after("ENTRYPOINT")).expect("a list")
    );
    assert_eq!(config["Env"], json!([after("ENV").replace('"', "")]));
}

/// Prints an image's configuration and what is in its layer but folders: type, and mode or target, by path.
const READ_IMAGE: &str = r#"
import io, json, sys, tarfile
image = tarfile.open(sys.argv[1])
manifest, = json.load(image.extractfile("manifest.json"))
layer = tarfile.open(fileobj=image.extractfile(manifest["Layers"][0]))
files = {"/" + entry.name: [entry.type.decode(), entry.linkname if entry.issym() else int(f"{entry.mode:o}")]
         for entry in layer if not entry.isdir()}
print(json.dumps({"files": files, "config": json.load(image.extractfile(manifest["Config"]))["config"]}))
"#;

#[test]
fn one_image_runs_everything() {
    let Some(engine) = engine() else { return };
    for (set, values) in sets(engine) {
        let rendered = engine.render(&values).expect("renders");
        let text = serde_json::to_string(&rendered.files).expect("JSON");
        let images: std::collections::BTreeSet<_> = text
            .split(r#""image":""#)
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .collect();
        assert_eq!(images.len(), 1, "{set}: {images:?}");
        let pulls = text.matches("imagePullPolicy").count();
        assert_eq!(pulls, text.matches(r#""image":""#).count(), "{set}");
    }
}

#[test]
fn its_name_is_put_together_from_registry_repository_and_tag_or_digest() {
    let Some(engine) = engine() else { return };
    let name = |given: serde_json::Value| {
        let mut values = required();
        crate::engine::merge(&mut values, &given);
        let rendered = engine.render(&values).expect("renders");
        let server = rendered.named("StatefulSet", "finial-server");
        server["spec"]["template"]["spec"]["containers"][0]["image"].clone()
    };
    let digest = format!("sha256:{:064}", 7);
    assert_eq!(name(json!({})), "finial/finial:0.1.0");
    assert_eq!(
        name(json!({"image": {"registry": "a.example", "tag": "2"}})),
        "a.example/finial/finial:2"
    );
    assert_eq!(
        name(
            json!({"image": {"registry": "a.example"}, "global": {"spire": {"image": {"registry": "b.example"}}}})
        ),
        "b.example/finial/finial:0.1.0"
    );
    assert_eq!(
        name(json!({"image": {"tag": "2", "digest": digest}})),
        format!("finial/finial@{digest}")
    );
}

/// The chart's version is the program's.
#[test]
fn the_chart_is_of_the_version_of_the_program() {
    let text = fs::read_to_string(repository().join("charts/finial/Chart.yaml")).expect("Chart.yaml");
    let version = env!("CARGO_PKG_VERSION");
    assert!(text.contains(&format!("\nversion: {version}\n")), "{text}");
    assert!(text.contains(&format!("\nappVersion: {version}\n")), "{text}");
}
