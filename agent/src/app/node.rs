//! The agent's own identity: its keys, and what an earlier run left of it.

use std::sync::Arc;

use finial_identity::key::manager::{DiskKeyManager, MemoryKeyManager};
use finial_identity::key::{KeyError, PrivateKeyManager};
use finial_identity::process::Clock;
use finial_identity::process::private_file::{self, FileError, FileMode};
use zeroize::Zeroizing;

use super::{BuildError, VERSION};
use crate::config::{Config, Essentials, JoinToken, Keys, NodeAttestorSettings};
use crate::node::{Jitter, Node, NodeAttestors, NodeSettings, RotationStrategy, SetAside};

/// Join tokens are UUIDs, or what an operator chose.
const MAX_TOKEN_FILE: usize = 64 * 1024;
/// File of `KeyManager "disk"` in its directory, as SPIRE's agents have it.
const KEYS_FILE: &str = "keys.json";

/// The node, and what is said of files of an earlier run that could not be read.
pub(super) fn open(
    config: &Config,
    clock: &Clock,
    jitter: &Jitter,
) -> Result<(Node, Vec<String>), BuildError> {
    let essentials = config.essentials();
    let is_spare = *config.node_attestor() != NodeAttestorSettings::JoinToken;
    let token = join_token(essentials, is_spare)?;
    let token = token.as_ref().map(|token| token.as_str());
    let attestors = NodeAttestors::new(config.node_attestor(), token);
    let mut lost = Vec::new();
    let keys = open_keys(&essentials.keys, &attestors, clock, &mut lost)?;
    let settings = NodeSettings {
        trust_domain: essentials.trust_domain.clone(),
        server_address: essentials.server_address.clone(),
        server_port: essentials.server_port,
        bootstrap: essentials.bootstrap.clone(),
        rebootstrap: config.rebootstrap(),
        data_dir: essentials.data_dir.clone(),
        rotation: RotationStrategy::new(config.availability_target()),
        agent_version: VERSION.to_owned(),
    };
    let node = Node::open(settings, keys, attestors, clock.clone(), jitter.clone())?;
    lost.extend(node.set_aside().map(ToString::to_string));
    Ok((node, lost))
}

/// The agent's keys. Those that cannot be read are set aside where the agent can attest anew, and told as `lost`.
fn open_keys(
    keys: &Keys,
    attestors: &NodeAttestors,
    clock: &Clock,
    lost: &mut Vec<String>,
) -> Result<Arc<dyn PrivateKeyManager>, BuildError> {
    let Keys::Disk(directory) = keys else {
        return Ok(Arc::new(MemoryKeyManager::new()));
    };
    private_file::create_private_dir(directory, FileMode::PRIVATE_DIR).map_err(BuildError::KeyDirectory)?;
    match DiskKeyManager::open(&directory.join(KEYS_FILE)) {
        Err(KeyError::Corrupted { path, why }) if attestors.are_repeatable() => {
            let file = SetAside::of(path.clone(), why, clock.now().unix_timestamp());
            tracing::error!(file = %file, "the agent's keys are lost, it attests anew");
            lost.push(file.to_string());
            Ok(match file.is_away() {
                true => Arc::new(DiskKeyManager::open(&path)?),
                false => Arc::new(MemoryKeyManager::new()),
            })
        }
        opened => Ok(Arc::new(opened?)),
    }
}

/// The join token if there is one. One beside another node attestor (`is_spare`) may have been removed after its use.
fn join_token(essentials: &Essentials, is_spare: bool) -> Result<Option<Zeroizing<String>>, BuildError> {
    Ok(match &essentials.join_token {
        None => None,
        Some(JoinToken::Given(token)) => Some(token.clone()),
        Some(JoinToken::File(path)) => match private_file::read_secret(path, MAX_TOKEN_FILE) {
            Err(FileError::Io { source, .. })
                if is_spare && source.kind() == std::io::ErrorKind::NotFound =>
            {
                tracing::info!(path = %path.display(), "there is no join token, the configured node attestor is used");
                None
            }
            token => {
                let token = token.map_err(BuildError::JoinToken)?;
                let text = String::from_utf8_lossy(token.as_bytes());
                Some(Zeroizing::new(text.into_owned()))
            }
        },
    })
}
