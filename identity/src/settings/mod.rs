//! Reads configuration files: SPIRE's keys, in HCL 1, JSON or YAML, into one tree, and from there
//! into checked settings with all mistakes reported at once.
//!
//! Flow: text -> [`expand_env`] (on request) -> [`Document::parse`] -> [`Section`]s, each key read
//! once with its type -> [`Problems::into_result`].
//!
//! ```
//! use finial_identity::settings::{Document, Format, Problems};
//!
//! let text = r#"agent { trust_domain = "example.org", server_port = "8081", sockt_path = "/run/a" }"#;
//! let document = Document::parse(text, Format::Hcl).expect("the text above is HCL");
//! let problems = Problems::new();
//! let root = document.section(&problems);
//! let agent = root.required_section("agent").expect("there is one");
//! assert_eq!(agent.required_string("trust_domain").as_deref(), Some("example.org"));
//! assert_eq!(agent.u16("server_port"), Some(8081));
//! assert_eq!(agent.string("socket_path"), None);
//! agent.finish();
//! root.finish();
//! assert_eq!(
//!     problems.into_result().expect_err("a key is misspelt").to_string(),
//!     "unknown configuration detected\nagent.sockt_path (line 1): unknown key, did you mean `socket_path`?"
//! );
//! ```

mod duration;
mod file;
mod hcl1;
mod health_checks;
mod json;
mod log;
pub mod plugins;
mod position;
mod problems;
mod reader;
mod section;
pub mod telemetry;
mod tree;
mod yaml;

pub use duration::{DurationError, parse_duration};
pub use file::{ConfigError, Variables};
pub use health_checks::HealthChecks;
pub use log::{LogFlags, read_log};
pub use plugins::{DataFile, Plugin};
pub use position::Position;
pub use problems::{Problem, Problems, SettingsError};
pub use reader::{Document, Format, expand_env};
pub use section::Section;
pub use telemetry::Telemetry;
pub use tree::{Node, ParseError, Value};

/// The largest configuration file, in bytes.
pub const MAX_TEXT: usize = 1024 * 1024;
/// How deep blocks and lists may be nested.
pub const MAX_DEPTH: usize = 64;
