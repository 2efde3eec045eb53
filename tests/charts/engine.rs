//! Helm's engine, driven through `helm.py` in one process for all tests.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::{Mutex, OnceLock};

use finial_tests::Peer;
use serde_json::{Value, json};

/// The version of Kubernetes that tests render for when they do not care.
pub const NEW: &str = "1.33.0";
/// Names the Python interpreter that has the package of `requirements.txt`.
const VARIABLE: &str = "FINIAL_TEST_HELM_PYTHON";

/// What a chart renders to.
#[derive(Debug, Clone, PartialEq)]
pub struct Rendered {
    /// Objects by the template they come from.
    pub files: BTreeMap<String, Vec<Value>>,
    /// What the user reads after the installation.
    pub notes: String,
}

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    // Held for its lifetime: its standard input closes with this process, and then it ends.
    _child: Child,
}

/// The folder of the chart.
pub fn chart() -> PathBuf {
    repository().join("charts/finial")
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    let tests = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    tests
        .parent()
        .expect("the tests are in the repository")
        .to_owned()
}

/// The engine, or `None` after the reason for skipping was printed.
pub fn engine() -> Option<&'static Engine> {
    static ENGINE: OnceLock<Option<Engine>> = OnceLock::new();
    ENGINE.get_or_init(start).as_ref()
}

fn start() -> Option<Engine> {
    let peer = Peer::find(VARIABLE, "python3", &["-c", "import helm_python"])?;
    let mut child = peer
        .command()
        .arg(repository().join("tests/charts/helm.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start Helm's engine");
    let stdin = child.stdin.take().expect("its input is a pipe");
    let stdout = child.stdout.take().expect("its output is a pipe");
    Some(Engine {
        pipes: Mutex::new((stdin, BufReader::new(stdout))),
        _child: child,
    })
}

impl Engine {
    /// Renders for the newest version of Kubernetes.
    pub fn render(&self, values: &Value) -> Result<Rendered, String> {
        self.render_for(NEW, values)
    }

    /// Renders as `helm install finial --namespace finial` would.
    pub fn render_for(&self, kube_version: &str, values: &Value) -> Result<Rendered, String> {
        self.render_chart(&chart(), kube_version, values)
    }

    /// The same of a chart elsewhere.
    pub fn render_chart(&self, chart: &Path, kube_version: &str, values: &Value) -> Result<Rendered, String> {
        let answer = self.ask(json!({
            "do": "render", "chart": chart, "values": values, "kube_version": kube_version, "namespace": "finial",
        }))?;
        let files = answer["files"].as_object().expect("files by name");
        let objects = |list: &Value| list.as_array().expect("a list of objects").clone();
        Ok(Rendered {
            files: files
                .iter()
                .map(|(name, list)| (name.clone(), objects(list)))
                .collect(),
            notes: answer["notes"].as_str().expect("notes are text").to_owned(),
        })
    }

    /// What `helm lint --strict` complains about.
    pub fn lint(&self, kube_version: &str, values: &Value) -> Result<Vec<String>, String> {
        let answer = self.ask(json!({
            "do": "lint", "chart": chart(), "values": values, "kube_version": kube_version,
        }))?;
        let findings = answer["findings"].as_array().expect("a list of findings");
        Ok(findings.iter().map(Value::to_string).collect())
    }

    /// The values of `values.yaml`.
    pub fn defaults(&self) -> Value {
        let answer = self.ask(json!({"do": "values", "chart": chart()}));
        answer.expect("the chart has values")["values"].clone()
    }

    /// The custom resource definitions of the chart.
    pub fn crds(&self) -> Vec<Value> {
        let answer = self.ask(json!({"do": "crds", "chart": chart()}));
        let answer = answer.expect("the chart's definitions are YAML");
        answer["objects"].as_array().expect("a list of objects").clone()
    }

    /// Reads YAML as Helm does.
    pub fn yaml(&self, text: &str) -> Value {
        let answer = self.ask(json!({"do": "yaml", "text": text}));
        answer.expect("the text is YAML")["values"].clone()
    }

    fn ask(&self, request: Value) -> Result<Value, String> {
        let mut pipes = self.pipes.lock().expect("no test died while it asked");
        let (stdin, stdout) = &mut *pipes;
        writeln!(stdin, "{request}").expect("write to Helm's engine");
        let mut line = String::new();
        stdout.read_line(&mut line).expect("read from Helm's engine");
        let mut answer: Value = serde_json::from_str(&line).expect("Helm's engine answers in JSON");
        match answer["refused"].take() {
            Value::String(refused) => Err(refused),
            _ => Ok(answer),
        }
    }
}

impl Rendered {
    /// All objects.
    pub fn objects(&self) -> impl Iterator<Item = &Value> {
        self.files.values().flatten()
    }

    /// All objects of a kind.
    pub fn of_kind<'a>(&'a self, kind: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
        let kind = kind.to_owned();
        self.objects()
            .filter(move |object| object["kind"] == kind.as_str())
    }

    /// The object of a kind with a name.
    pub fn named(&self, kind: &str, name: &str) -> &Value {
        self.of_kind(kind)
            .find(|object| object["metadata"]["name"] == name)
            .unwrap_or_else(|| panic!("no {kind} {name}"))
    }
}

/// Puts `over` over `under`, key by key, as Helm merges values.
pub fn merge(under: &mut Value, over: &Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                merge(under.entry(key).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over.clone(),
    }
}

/// `{"a": {"b": value}}` for `a.b`.
pub fn at(path: &str, value: Value) -> Value {
    path.rsplit('.').fold(value, |value, key| json!({ key: value }))
}
