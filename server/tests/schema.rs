//! The promise to later versions: migrations after the first only add, and every row outlives them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path};

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection, postgres::PgConnectOptions};
use wattle_server::postgres::Postgres;

/// A version of the schema: what leads to it, and rows as that version may hold them.
#[derive(Clone, Debug)]
struct Version {
    name: String,
    migration: String,
    rows: String,
}

/// All versions in order. Each has a file of rows, `tests/schema/<number>.sql`.
fn versions() -> Vec<Version> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names: Vec<_> = fs::read_dir(root.join("../migrations"))
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let version = |name: String| {
        let number = name.split('_').next().unwrap();
        let rows = root.join(format!("tests/schema/{number}.sql"));
        let rows = fs::read_to_string(&rows)
            .unwrap_or_else(|error| panic!("{name} needs rows in {}: {error}", rows.display()));
        let migration = fs::read_to_string(root.join("../migrations").join(&name)).unwrap();
        Version {
            name,
            migration,
            rows,
        }
    };
    names.into_iter().map(version).collect()
}

type Tables = BTreeMap<String, Vec<Value>>;

/// Every row of every table.
async fn read(connection: &mut PgConnection) -> Tables {
    let names = "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'";
    let names: Vec<String> = sqlx::query_scalar(names)
        .fetch_all(&mut *connection)
        .await
        .unwrap();
    let mut tables = Tables::new();
    for name in names {
        let rows = AssertSqlSafe(format!("SELECT to_jsonb(row) FROM {name} AS row"));
        let rows = sqlx::query_scalar(rows)
            .fetch_all(&mut *connection)
            .await
            .unwrap();
        tables.insert(name, rows);
    }
    tables
}

/// Whether a row says all that an older one said. Columns may have been added.
fn holds(row: &Value, older: &Value) -> bool {
    let (row, older) = (row.as_object().unwrap(), older.as_object().unwrap());
    older
        .iter()
        .all(|(column, value)| row.get(column) == Some(value))
}

/// Brings a new database to a version with its rows, then on to the newest; what got lost.
async fn lost(
    cluster: &PgConnectOptions,
    database: &str,
    old: &[Version],
    new: &[Version],
) -> Vec<String> {
    let mut connection = PgConnection::connect_with(cluster).await.unwrap();
    let create = AssertSqlSafe(format!("CREATE DATABASE {database}"));
    sqlx::raw_sql(create)
        .execute(&mut connection)
        .await
        .unwrap();
    let mut connection = PgConnection::connect_with(&cluster.clone().database(database))
        .await
        .unwrap();
    for Version {
        migration, rows, ..
    } in old
    {
        for sql in [migration, rows] {
            sqlx::raw_sql(AssertSqlSafe(sql.clone()))
                .execute(&mut connection)
                .await
                .unwrap();
        }
    }
    let before = read(&mut connection).await;
    for (table, rows) in &before {
        assert!(
            !rows.is_empty(),
            "the rows of {} have none for {table}",
            old[old.len() - 1].name
        );
    }
    for Version { migration, .. } in new {
        sqlx::raw_sql(AssertSqlSafe(migration.clone()))
            .execute(&mut connection)
            .await
            .unwrap();
    }
    let after = read(&mut connection).await;
    let is_kept = |table: &str, row: &Value| {
        after
            .get(table)
            .is_some_and(|rows| rows.iter().any(|now| holds(now, row)))
    };
    let rows = before
        .iter()
        .flat_map(|(table, rows)| rows.iter().map(move |row| (table, row)));
    rows.filter(|(table, row)| !is_kept(table, row))
        .map(|(table, _)| table.clone())
        .collect()
}

/// What a migration does that takes something away.
fn takes_away(migration: &str) -> Option<&'static str> {
    let lines = migration
        .lines()
        .map(|line| line.split("--").next().unwrap_or_default());
    let text = lines.collect::<Vec<_>>().join(" ").to_uppercase();
    let words: Vec<_> = text
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty() && !["COLUMN", "SET", "DATA"].contains(word))
        .collect();
    if words.contains(&"DROP") {
        return Some("DROP");
    }
    if words.contains(&"RENAME") {
        return Some("RENAME");
    }
    let retypes = |words: &[&str]| words[0] == "ALTER" && words[2] == "TYPE";
    words.windows(3).any(retypes).then_some("ALTER … TYPE")
}

#[test]
fn migrations_after_the_first_only_add() {
    for version in &versions()[1..] {
        assert_eq!(takes_away(&version.migration), None, "{}", version.name);
    }
    for (migration, expected) in [
        ("ALTER TABLE sites ADD COLUMN kind text; -- no DROP", None),
        ("DROP TABLE sites;", Some("DROP")),
        (
            "alter table sites rename column name to title;",
            Some("RENAME"),
        ),
        (
            "ALTER TABLE sites ALTER COLUMN name SET DATA TYPE varchar;",
            Some("ALTER … TYPE"),
        ),
        (
            "ALTER TABLE sites ALTER name TYPE varchar;",
            Some("ALTER … TYPE"),
        ),
    ] {
        assert_eq!(takes_away(migration), expected, "{migration}");
    }
}

#[tokio::test]
async fn every_row_of_every_version_outlives_the_migrations_after_it() {
    let folder = tempfile::Builder::new()
        .prefix("wattle-test-")
        .permissions(fs::Permissions::from_mode(0o711))
        .tempdir_in("/tmp")
        .unwrap();
    let path = folder.path().to_owned();
    let postgres = tokio::task::spawn_blocking(move || Postgres::start(&path))
        .await
        .unwrap()
        .unwrap();
    let cluster = postgres.options();
    let versions = versions();
    for count in 1..=versions.len() {
        let (old, new) = versions.split_at(count);
        let name = &old[count - 1].name;
        assert_eq!(
            lost(&cluster, &format!("from_{count}"), old, new).await,
            [""; 0],
            "after {name}"
        );
    }
    for (number, (migration, table)) in [
        ("DELETE FROM subnets", "subnets"),
        ("UPDATE api_tokens SET name = 'other'", "api_tokens"),
        ("ALTER TABLE changes DROP COLUMN epoch", "changes"),
        ("DROP TABLE authorities", "authorities"),
    ]
    .into_iter()
    .enumerate()
    {
        let (name, migration) = ("a bad one".to_owned(), migration.to_owned());
        let bad = [Version {
            name,
            migration,
            rows: String::new(),
        }];
        assert_eq!(
            lost(&cluster, &format!("bad_{number}"), &versions, &bad).await,
            [table]
        );
    }
    tokio::task::spawn_blocking(move || postgres.stop())
        .await
        .unwrap();
}
