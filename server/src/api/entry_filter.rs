//! Filters of entry listings.

use finial_identity::entry::Entry;
use finial_identity::selector::{MatchBehavior, Selector};
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use finial_identity::wire;
use finial_proto::spire::api::server::entry::v1 as pb;
use finial_proto::spire::api::types;
use finial_proto::spire::api::types::federates_with_match::MatchBehavior as WireFederates;
use finial_proto::spire::api::types::selector_match::MatchBehavior as WireSelectors;

use super::status::{OrRefuse, Refusal};

/// Which entries are asked for; all conditions must hold.
#[derive(Debug, Default)]
pub struct EntryFilter {
    spiffe_id: Option<SpiffeId>,
    parent_id: Option<SpiffeId>,
    selectors: Option<(MatchBehavior, Vec<Selector>)>,
    federates_with: Option<(MatchBehavior, Vec<TrustDomain>)>,
    hint: Option<String>,
    downstream: Option<bool>,
}

impl EntryFilter {
    /// The filter of `ListEntries`.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` that names the malformed condition.
    pub fn of_list(
        filter: Option<pb::list_entries_request::Filter>,
        trust_domain: &TrustDomain,
    ) -> Result<Self, Refusal> {
        let Some(filter) = filter else {
            return Ok(Self::default());
        };
        let parent_id = match filter.by_parent_id {
            None => None,
            Some(id) => Some(member_id(id, trust_domain)?),
        };
        let spiffe_id = match filter.by_spiffe_id {
            None => None,
            Some(id) => Some(workload_id(id, trust_domain)?),
        };
        Ok(Self {
            spiffe_id,
            parent_id,
            selectors: filter.by_selectors.map(selector_match).transpose()?,
            federates_with: filter.by_federates_with.map(federates_match).transpose()?,
            hint: filter.by_hint.filter(|hint| !hint.is_empty()),
            downstream: filter.by_downstream,
        })
    }

    /// The filter of `CountEntries`.
    ///
    /// # Errors
    /// As [`EntryFilter::of_list`].
    pub fn of_count(
        filter: Option<pb::count_entries_request::Filter>,
        trust_domain: &TrustDomain,
    ) -> Result<Self, Refusal> {
        let filter = filter.map(|filter| pb::list_entries_request::Filter {
            by_spiffe_id: filter.by_spiffe_id,
            by_parent_id: filter.by_parent_id,
            by_selectors: filter.by_selectors,
            by_federates_with: filter.by_federates_with,
            by_hint: filter.by_hint,
            by_downstream: filter.by_downstream,
        });
        Self::of_list(filter, trust_domain)
    }

    /// Whether all entries are asked for.
    pub fn is_empty(&self) -> bool {
        let Self {
            spiffe_id: None,
            parent_id: None,
            selectors: None,
            federates_with: None,
            hint: None,
            downstream: None,
        } = self
        else {
            return false;
        };
        true
    }

    /// The one SPIFFE ID that is asked for.
    pub fn spiffe_id(&self) -> Option<&SpiffeId> {
        self.spiffe_id.as_ref()
    }

    /// The one parent that is asked for.
    pub fn parent_id(&self) -> Option<&SpiffeId> {
        self.parent_id.as_ref()
    }

    /// Whether the entry is among those asked for.
    pub fn matches(&self, entry: &Entry) -> bool {
        let is = |wanted: &Option<SpiffeId>, id: &SpiffeId| wanted.as_ref().is_none_or(|wanted| wanted == id);
        is(&self.spiffe_id, &entry.spiffe_id)
            && is(&self.parent_id, &entry.parent_id)
            && self.hint.as_ref().is_none_or(|hint| *hint == entry.hint)
            && self
                .downstream
                .is_none_or(|downstream| downstream == entry.downstream)
            && self
                .selectors
                .as_ref()
                .is_none_or(|(how, given)| how.matches(&entry.selectors, given))
            && self
                .federates_with
                .as_ref()
                .is_none_or(|(how, given)| how.matches(&entry.federates_with, given))
    }
}

/// A condition on selectors.
///
/// # Errors
/// `INVALID_ARGUMENT` for an empty list, a malformed selector or an unknown behaviour.
pub fn selector_match(given: types::SelectorMatch) -> Result<(MatchBehavior, Vec<Selector>), Refusal> {
    let behavior = match WireSelectors::try_from(given.r#match) {
        Ok(WireSelectors::MatchExact) => MatchBehavior::Exact,
        Ok(WireSelectors::MatchSubset) => MatchBehavior::Subset,
        Ok(WireSelectors::MatchSuperset) => MatchBehavior::Superset,
        Ok(WireSelectors::MatchAny) => MatchBehavior::Any,
        Err(_) => {
            return Err(Refusal::invalid(format!(
                "malformed selectors filter: unknown match behavior {}",
                given.r#match
            )));
        }
    };
    if given.selectors.is_empty() {
        return Err(Refusal::invalid("malformed selectors filter: empty selector set"));
    }
    let selectors = wire::selectors_from_wire(&given.selectors).or_refuse("malformed selectors filter")?;
    Ok((behavior, selectors))
}

fn federates_match(given: types::FederatesWithMatch) -> Result<(MatchBehavior, Vec<TrustDomain>), Refusal> {
    let behavior = match WireFederates::try_from(given.r#match) {
        Ok(WireFederates::MatchExact) => MatchBehavior::Exact,
        Ok(WireFederates::MatchSubset) => MatchBehavior::Subset,
        Ok(WireFederates::MatchSuperset) => MatchBehavior::Superset,
        Ok(WireFederates::MatchAny) => MatchBehavior::Any,
        Err(_) => {
            return Err(Refusal::invalid(format!(
                "malformed federates with filter: unknown match behavior {}",
                given.r#match
            )));
        }
    };
    if given.trust_domains.is_empty() {
        return Err(Refusal::invalid(
            "malformed federates with filter: empty trust domain set",
        ));
    }
    let mut trust_domains = Vec::with_capacity(given.trust_domains.len());
    for name in &given.trust_domains {
        trust_domains.push(TrustDomain::parse_name_or_id(name).or_refuse("malformed federates with filter")?);
    }
    Ok((behavior, trust_domains))
}

fn member_id(id: types::Spiffeid, trust_domain: &TrustDomain) -> Result<SpiffeId, Refusal> {
    let id = wire::spiffe_id_from_wire(Some(id)).or_refuse("malformed parent ID filter")?;
    if !id.is_member_of(trust_domain) || !id.has_path() {
        return Err(Refusal::invalid(format!(
            "malformed parent ID filter: \"{id}\" is not a member of trust domain \"{trust_domain}\""
        )));
    }
    Ok(id)
}

fn workload_id(id: types::Spiffeid, trust_domain: &TrustDomain) -> Result<SpiffeId, Refusal> {
    let id = wire::spiffe_id_from_wire(Some(id)).or_refuse("malformed SPIFFE ID filter")?;
    if !id.is_member_of(trust_domain) || !id.is_workload() {
        return Err(Refusal::invalid(format!(
            "malformed SPIFFE ID filter: \"{id}\" is not a workload in trust domain \"{trust_domain}\""
        )));
    }
    Ok(id)
}
