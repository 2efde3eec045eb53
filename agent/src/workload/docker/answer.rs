//! An engine's answer about a container, and the facts in it.

use std::collections::BTreeMap;

use finial_identity::selector::{Selector, SelectorError};
use serde::Deserialize;

use super::NAME;

/// Before the digits of an image's id.
const SHA256: &str = "sha256:";
/// Digits of an id.
const ID_DIGITS: usize = 64;

/// A container, from the answer to `GET /containers/<id>/json` of Docker's Engine API, which Podman answers alike.
/// Prints nothing of what a container was given.
#[derive(Deserialize)]
pub struct Container {
    #[serde(rename = "Id")]
    id: String,
    #[serde(rename = "Image", default)]
    image: String,
    #[serde(rename = "State")]
    state: State,
    #[serde(rename = "Config")]
    config: Config,
}

#[derive(Deserialize)]
struct State {
    #[serde(rename = "Pid", default)]
    pid: i64,
}

#[derive(Deserialize)]
struct Config {
    #[serde(rename = "Labels", default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(rename = "Env", default)]
    env: Option<Vec<String>>,
    #[serde(rename = "Image", default)]
    image: String,
}

/// An answer that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// It is not the JSON that is expected. It may contain secrets and is not shown.
    #[error("answer cannot be understood: line {line}, column {column}")]
    Json {
        /// Where, from 1.
        line: usize,
        /// Where, from 1.
        column: usize,
    },
    /// The container's image is not named by a SHA-256 digest.
    #[error("answer has a malformed image id: {0:?}")]
    ImageId(String),
    /// A fact cannot be written as a selector.
    #[error("fact is no selector: {0}")]
    Selector(#[from] SelectorError),
}

/// An error, as Docker and Podman word it.
#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    message: String,
    #[serde(default)]
    cause: String,
}

impl Container {
    /// Parses an answer.
    ///
    /// # Errors
    /// [`AnswerError::Json`].
    pub fn parse(answer: &[u8]) -> Result<Self, AnswerError> {
        serde_json::from_slice(answer).map_err(|error| AnswerError::Json {
            line: error.line(),
            column: error.column(),
        })
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its first process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        u32::try_from(self.state.pid).ok().filter(|pid| *pid > 0)
    }

    /// `label:<key>:<value>`, `env:<VAR>=<value>`, `image_id:<name as configured>` and `image_config_digest:sha256:<hex>`,
    /// as SPIRE has them. The digest is that of the image the container was made of, also when its name leads to
    /// another one by now. What is too long for a selector is left out: no entry can name it either.
    ///
    /// # Errors
    /// When the image's id is not understood.
    pub fn facts(&self) -> Result<Vec<Selector>, AnswerError> {
        let mut facts = Vec::new();
        let mut add = |value: String| match Selector::new(NAME, &value) {
            Ok(fact) => {
                facts.push(fact);
                Ok(())
            }
            Err(SelectorError::TooLong(_)) => Ok(()),
            Err(error) => Err(error),
        };
        for (key, value) in self.config.labels.iter().flatten() {
            add(format!("label:{key}:{value}"))?;
        }
        for variable in self.config.env.iter().flatten() {
            add(format!("env:{variable}"))?;
        }
        if !self.config.image.is_empty() {
            add(format!("image_id:{}", self.config.image))?;
        }
        if let Some(digits) = self.image_digits()? {
            add(format!("image_config_digest:{SHA256}{digits}"))?;
        }
        Ok(facts)
    }

    /// A container of Podman may be made of a directory and have no image.
    fn image_digits(&self) -> Result<Option<&str>, AnswerError> {
        let digits = self.image.strip_prefix(SHA256).unwrap_or(&self.image);
        if digits.is_empty() {
            return Ok(None);
        }
        if digits.len() == ID_DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(Some(digits));
        }
        Err(AnswerError::ImageId(self.image.clone()))
    }
}

impl std::fmt::Debug for Container {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Container")
            .field("id", &self.id)
            .field("pid", &self.state.pid)
            .finish_non_exhaustive()
    }
}

/// Whether an answer with status 404 says that there is no such container, and not that there is no such API.
pub(super) fn is_no_such_container(answer: &[u8]) -> bool {
    let Ok(refusal) = serde_json::from_slice::<Refusal>(answer) else {
        return false;
    };
    [refusal.message, refusal.cause]
        .iter()
        .any(|text| text.to_ascii_lowercase().contains("no such container"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "ea69c0e9f97ac430707eab4e515c7c427f742c38f0b3cd56f5e54df538db8b49";
    const IMAGE: &str = "22b8eeb9d6af9bc9d92a806c38b0681de083daa439a6e4ad9c8a921a9f01670f";

    fn facts(config: &str, image: &str) -> Result<Vec<String>, AnswerError> {
        let answer = format!(
            r#"{{"Id":"{ID}","Image":"{image}","State":{{"Pid":7,"Running":true}},"Config":{config}}}"#
        );
        let facts = Container::parse(answer.as_bytes())?.facts()?;
        Ok(facts.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn facts_are_spelled_as_spires() {
        let config = r#"{"Hostname":"x","Env":["X=y=z","PATH=/bin"],"Image":"registry:5000/web:1",
            "Labels":{"tier":"one","com.example.url":"http://a:1","empty":""}}"#;
        let expected = [
            "docker:label:com.example.url:http://a:1".to_owned(),
            "docker:label:empty:".to_owned(),
            "docker:label:tier:one".to_owned(),
            "docker:env:X=y=z".to_owned(),
            "docker:env:PATH=/bin".to_owned(),
            "docker:image_id:registry:5000/web:1".to_owned(),
            format!("docker:image_config_digest:sha256:{IMAGE}"),
        ];
        assert_eq!(facts(config, &format!("sha256:{IMAGE}")).unwrap(), expected);
        // Podman's older versions leave out the name of the hash.
        assert_eq!(facts(config, IMAGE).unwrap(), expected);
    }

    #[test]
    fn what_a_container_does_not_have_is_no_fact() {
        for (config, image) in [
            ("{}", ""),
            (r#"{"Labels":null,"Env":null,"Image":""}"#, "sha256:"),
        ] {
            assert_eq!(facts(config, image).unwrap(), [""; 0]);
        }
    }

    #[test]
    fn an_image_id_that_is_no_digest_is_an_error_not_fewer_facts() {
        for image in [
            "sha256:abc",
            "sha512:",
            "web:1",
            &IMAGE[1..],
            &IMAGE.replace('2', "g"),
        ] {
            assert_eq!(facts("{}", image), Err(AnswerError::ImageId(image.to_owned())));
        }
    }

    #[test]
    fn a_variable_too_long_for_a_selector_hides_no_other() {
        let long = "x".repeat(20_000);
        let config = format!(r#"{{"Env":["A={long}","B=1"],"Labels":{{"{long}":"","c":"d"}}}}"#);
        assert_eq!(
            facts(&config, "").unwrap(),
            ["docker:label:c:d", "docker:env:B=1"]
        );
    }

    #[test]
    fn an_answer_without_what_is_needed_is_an_error_that_tells_no_content() {
        for answer in [
            "",
            "null",
            "[]",
            r#"{"Id":"a","State":{"Pid":1}}"#,
            r#"{"Id":"a","Config":{}}"#,
            r#"{"State":{"Pid":1},"Config":{}}"#,
            r#"{"Id":"a","State":{"Pid":1},"Config":{"Env":{"SECRET":"hunter2"}}}"#,
            r#"{"Id":"a","State":{"Pid":1},"Config":{"Labels":"hunter2"}}"#,
        ] {
            let error = Container::parse(answer.as_bytes()).unwrap_err();
            assert!(matches!(error, AnswerError::Json { .. }), "{answer}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_container_that_does_not_run_has_no_first_process() {
        for (pid, expected) in [("0", None), ("-1", None), ("4294967296", None), ("7", Some(7))] {
            let answer = format!(r#"{{"Id":"a","State":{{"Pid":{pid}}},"Config":{{}}}}"#);
            assert_eq!(Container::parse(answer.as_bytes()).unwrap().pid(), expected);
        }
    }

    #[test]
    fn only_a_missing_container_is_known_to_be_missing() {
        for (answer, expected) in [
            (r#"{"message":"No such container: ea69"}"#, true),
            (
                r#"{"cause":"no such container","message":"no container with name or ID \"ea69\" found","response":404}"#,
                true,
            ),
            (r#"{"message":"page not found"}"#, false),
            (r#"{"message":"No such image: ea69"}"#, false),
            ("Not Found", false),
            ("", false),
        ] {
            assert_eq!(is_no_such_container(answer.as_bytes()), expected, "{answer}");
        }
    }
}
