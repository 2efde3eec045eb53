//! The `explain` block, which SPIRE does not have.

use finial_identity::settings::Section;

/// Reads `explain { redact = [...] }`: beginnings of selectors whose values `finial why` does not show. `None` when
/// there is none.
pub(super) fn read(agent: &Section<'_>) -> Option<Vec<String>> {
    let section = agent.section("explain")?;
    let redact = section.has("redact").then(|| section.strings("redact"));
    section.finish();
    redact
}
