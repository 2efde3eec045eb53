//! Schema versions, in order; each is applied in one transaction and never changed afterwards.

/// One step from the version before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Migration {
    pub(super) version: i64,
    pub(super) statements: &'static str,
}

/// Steps of the SQLite schema.
pub(super) const SQLITE: &[Migration] = &[Migration {
    version: 1,
    statements: include_str!("sqlite_0001.sql"),
}];

/// The newest version known here.
pub(super) fn newest(migrations: &[Migration]) -> i64 {
    migrations.last().map_or(0, |migration| migration.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_dense_from_one() {
        for (index, migration) in SQLITE.iter().enumerate() {
            assert_eq!(migration.version, i64::try_from(index).unwrap() + 1);
        }
    }
}
