//! With what the agent proves itself: with the configured node attestor, and the first time with a join token if it was
//! given one beside it, as SPIRE's agents do.

use std::sync::Arc;

use super::{AttestError, JoinTokenAttestor, K8sPsatAttestor, NodeAttestor, X509PopAttestor};
use crate::config::NodeAttestorSettings;

/// What an agent can attest with.
#[derive(Clone, Debug, Default)]
pub struct NodeAttestors {
    /// For an agent that never had an SVID.
    joining: Option<Arc<dyn NodeAttestor>>,
    configured: Option<Arc<dyn NodeAttestor>>,
    /// What the configured one shows works once, and was used or refused: there is no use in showing it again.
    spent: bool,
}

impl NodeAttestors {
    /// The configured attestor, and the join token if there is one.
    pub fn new(settings: &NodeAttestorSettings, token: Option<&str>) -> Self {
        let token = token.map(|token| Arc::new(JoinTokenAttestor::new(token)) as Arc<dyn NodeAttestor>);
        let configured: Arc<dyn NodeAttestor> = match settings {
            NodeAttestorSettings::JoinToken => return Self::only(token),
            NodeAttestorSettings::X509Pop(settings) => Arc::new(X509PopAttestor::new(settings.clone())),
            NodeAttestorSettings::K8sPsat(settings) => Arc::new(K8sPsatAttestor::new(settings.clone())),
        };
        Self {
            joining: token,
            ..Self::only(Some(configured))
        }
    }

    /// One attestor for each time. Without one only an SVID that an earlier run saved helps.
    pub fn only(attestor: Option<Arc<dyn NodeAttestor>>) -> Self {
        Self {
            configured: attestor,
            ..Self::default()
        }
    }

    /// Whether the agent can attest as often as it must, whatever it lost.
    pub fn are_repeatable(&self) -> bool {
        let configured = self.configured();
        configured.is_some_and(|attestor| !attestor.works_once())
    }

    /// What there is for every time but the first.
    pub(super) fn configured(&self) -> Option<&dyn NodeAttestor> {
        self.configured.as_deref()
    }

    /// Whether an agent that has attested may do so again.
    pub(super) fn can_reattest(&self) -> bool {
        self.configured.is_some() && !self.spent
    }

    /// This agent has attested in an earlier run.
    pub(super) fn have_attested(&mut self) {
        if self.joining.take().is_some() {
            tracing::info!("join token is not used: this agent has attested before");
        }
    }

    /// Whether a join token comes before the configured attestor.
    pub(super) fn are_joining(&self) -> bool {
        self.joining.is_some()
    }

    /// What to attest with now.
    ///
    /// # Errors
    /// [`AttestError::NoAttestor`], [`AttestError::Spent`].
    pub(super) fn next(&self) -> Result<Arc<dyn NodeAttestor>, AttestError> {
        if let Some(joining) = &self.joining {
            return Ok(Arc::clone(joining));
        }
        let configured = self.configured.as_ref().ok_or(AttestError::NoAttestor)?;
        match self.spent {
            true => Err(AttestError::Spent(configured.name())),
            false => Ok(Arc::clone(configured)),
        }
    }

    /// What [`NodeAttestors::next`] gave was shown, and the server accepted it or refused it for good.
    pub(super) fn shown(&mut self) {
        if self.joining.take().is_none() {
            self.spent = self.configured().is_some_and(NodeAttestor::works_once);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::K8sPsatSettings;

    fn names(attestors: &NodeAttestors) -> Result<&'static str, String> {
        let next = attestors.next().map_err(|error| error.to_string());
        next.map(|attestor| attestor.name())
    }

    fn psat() -> NodeAttestorSettings {
        NodeAttestorSettings::K8sPsat(K8sPsatSettings {
            cluster: "demo".to_owned(),
            token_path: "/t".into(),
        })
    }

    #[test]
    fn a_token_is_for_the_first_time_and_the_configured_attestor_for_every_other() {
        let mut attestors = NodeAttestors::new(&psat(), Some("token"));
        assert_eq!(names(&attestors), Ok("join_token"));
        assert!(attestors.are_repeatable() && attestors.can_reattest());
        attestors.shown();
        assert_eq!(names(&attestors), Ok("k8s_psat"));
        attestors.shown();
        assert_eq!(names(&attestors), Ok("k8s_psat"));
        let mut attestors = NodeAttestors::new(&psat(), Some("token"));
        attestors.have_attested();
        assert_eq!(names(&attestors), Ok("k8s_psat"));
    }

    #[test]
    fn a_token_alone_is_shown_once() {
        let mut attestors = NodeAttestors::new(&NodeAttestorSettings::JoinToken, Some("token"));
        attestors.have_attested();
        assert_eq!(names(&attestors), Ok("join_token"));
        assert!(attestors.can_reattest() && !attestors.are_repeatable());
        attestors.shown();
        assert!(names(&attestors).unwrap_err().contains("works once") && !attestors.can_reattest());
        let none = NodeAttestors::new(&NodeAttestorSettings::JoinToken, None);
        assert!(names(&none).is_err() && !none.can_reattest() && !none.are_repeatable());
    }
}
