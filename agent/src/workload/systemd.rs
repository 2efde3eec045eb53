//! The workload attestor `systemd`: the unit that a process belongs to, from systemd over the system bus.
//!
//! Facts: `id` and `fragment_path`, as `systemctl show` has them. A process that belongs to no unit has none. The
//! bus is the one that `DBUS_SYSTEM_BUS_ADDRESS` names, as for every program that uses D-Bus, else the system's.

use std::sync::Arc;

use async_trait::async_trait;
use finial_identity::selector::Selector;
use tokio::sync::Mutex;
use zbus::{Connection, DynamicType, OwnedObjectPath, OwnedVariant};

use super::{AttestorError, Process, WorkloadAttestor};

const NAME: &str = "systemd";

/// systemd's name on the bus.
const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// systemd's word for a process outside of all units.
const NO_UNIT: &str = "org.freedesktop.systemd1.NoUnitForPID";

/// Attests by what systemd knows.
#[derive(Debug, Default)]
pub struct SystemdAttestor {
    /// Made with the first call, and again when it broke.
    bus: Mutex<Option<Connection>>,
}

impl SystemdAttestor {
    /// An attestor that connects to the bus when it is asked.
    pub fn new() -> Self {
        Self::default()
    }

    async fn bus(&self) -> Result<Connection, AttestorError> {
        let mut bus = self.bus.lock().await;
        if let Some(open) = bus.as_ref().filter(|open| !open.is_closed()) {
            return Ok(open.clone());
        }
        let opened = Connection::system()
            .await
            .map_err(AttestorError::service("connect to the system bus"))?;
        *bus = Some(opened.clone());
        Ok(opened)
    }
}

#[async_trait]
impl WorkloadAttestor for SystemdAttestor {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn attest(&self, process: &Arc<Process>) -> Result<Vec<Selector>, AttestorError> {
        let bus = self.bus().await?;
        let pid = process.pid();
        let unit = match call(&bus, MANAGER_PATH, MANAGER, "GetUnitByPID", &(pid,)).await {
            Err(zbus::Error::MethodError(name, ..)) if name.as_str() == NO_UNIT => return Ok(Vec::new()),
            reply => reply.and_then(|reply| reply.body().deserialize::<OwnedObjectPath>()),
        };
        let unit = unit.map_err(AttestorError::service(format!(
            "ask systemd for the unit of process {pid}"
        )))?;
        let id = property(&bus, &unit, "Id").await?;
        let fragment_path = property(&bus, &unit, "FragmentPath").await?;
        Ok(vec![
            Selector::new(NAME, &format!("id:{id}"))?,
            Selector::new(NAME, &format!("fragment_path:{fragment_path}"))?,
        ])
    }
}

async fn property(bus: &Connection, unit: &OwnedObjectPath, name: &str) -> Result<String, AttestorError> {
    let reply = call(bus, unit.as_str(), PROPERTIES, "Get", &(UNIT, name)).await;
    let value = reply.and_then(|reply| {
        let value: OwnedVariant = reply.body().deserialize()?;
        String::try_from(value)
    });
    value.map_err(AttestorError::service(format!(
        "ask systemd for {name} of {}",
        unit.as_str()
    )))
}

async fn call(
    bus: &Connection,
    path: &str,
    interface: &str,
    method: &str,
    arguments: &(impl serde::Serialize + DynamicType),
) -> zbus::Result<zbus::Message> {
    bus.call_method(Some(SYSTEMD), path, Some(interface), method, arguments)
        .await
}
