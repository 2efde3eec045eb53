//! Files with data of plugins, read again on the operator's word.

use finial_identity::settings::{DataFile, Variables};

use crate::workload::ConfiguredAttestors;

/// The files that hold data of plugins (`plugin_data_file`).
#[derive(Clone, Debug)]
pub struct PluginFiles {
    pub(super) attestors: ConfiguredAttestors,
    pub(super) fixed: Vec<DataFile>,
}

impl PluginFiles {
    /// Reads them again. Workload attestors take what changed; what else there is counts at the next start. `env` looks
    /// variables up.
    pub async fn read_again(&mut self, env: Variables<'_>) {
        if !self.attestors.has_files() && self.fixed.is_empty() {
            tracing::info!("no plugin reads its data from a file");
        }
        self.attestors.read_again(env).await;
        for file in &self.fixed {
            tracing::info!(
                path = %file.path().display(),
                "data of this plugin is read at start: a change has its effect after a restart"
            );
        }
    }
}
