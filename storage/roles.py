"""Who may do what in the database: three roles, so that no process holds more rights than it needs.

- `shoal_owner` owns the tables and changes them (`shoal db migrate`); nothing else runs as it.
- `shoal_worker` reads, adds and changes rows: workers, controllers, everything that runs trials. It makes,
  alters and drops nothing and deletes nothing.
- `shoal_reader` reads: reports, `shoal serve`, Optuna Dashboard, backups.

None of them may even connect to the server's own databases (`postgres`, `template1`), where whoever makes the
roles may take that from everybody; the databases of others on the same server are theirs, and are told of.

Grants are over whole schemas and, as default privileges, over whatever the owner makes later: a new table
needs no line here. The database is thought to be ours alone. All statements may be run again; rights that
a role has too many of are taken away in the same transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, text

from storage.errors import DatabaseUnsuitable

if TYPE_CHECKING:
    from storage.database import Database

OWNER, WORKER, READER = "shoal_owner", "shoal_worker", "shoal_reader"

SCHEMAS = ("shoal", "public")
"""Ours, and where Optuna's tables lie."""

VERSIONS = ("shoal.schema_version", "public.alembic_version", "public.version_info")
"""What says which form the tables have; only who changes the form may write it."""

READER_CONNECTIONS = 20
SPARED_CONNECTIONS = 30
"""Of the server's, for readers, migrations and whoever repairs something."""


@dataclass(frozen=True, slots=True)
class Role:
    """What a role may do in both schemas, and what its sessions begin with."""

    name: str
    purpose: str
    tables: str
    sequences: str
    settings: Mapping[str, str]


COMMON = {
    "TimeZone": "UTC",
    "search_path": "public",
    "default_transaction_isolation": "read committed",
    "idle_in_transaction_session_timeout": "60s",
}
"""Optuna stores times without a zone, and doubles trial numbers under REPEATABLE READ."""

ROLES: dict[str, Role] = {
    WORKER: Role(
        WORKER,
        "runs experiments: reads, adds and changes rows; makes, drops and deletes nothing",
        tables="SELECT, INSERT, UPDATE",
        sequences="SELECT, USAGE",
        settings=COMMON | {"statement_timeout": "60s", "lock_timeout": "20s"},
    ),
    READER: Role(
        READER,
        "reads: reports, the view in a browser, Optuna Dashboard, backups",
        tables="SELECT",
        sequences="SELECT",
        settings=COMMON | {"statement_timeout": "300s", "default_transaction_read_only": "on"},
    ),
}
"""The roles beside the owner, by name."""


def worker_connections(database: Database) -> int:
    """How many connections workers may hold together: the server's, less what others need."""
    most = int(database.scalar("SHOW max_connections"))
    return max(most - SPARED_CONNECTIONS, most // 2)


def statements(database_name: str, workers: int, readers: int = READER_CONNECTIONS) -> list[str]:
    """What makes the roles and gives each its rights, in SQL that may be run again; without passwords.

    `workers` and `readers`: connections at a time. To be run in the database itself by its superuser, or
    by a role that may make roles and owns the database.
    """
    database = quoted(database_name)
    limits = {WORKER: workers, READER: readers}
    both = ", ".join(ROLES)
    found = [_made(OWNER), *map(_made, ROLES)]
    found += [BELONG_TO_OWNER]
    for role in ROLES.values():
        found += [f"ALTER ROLE {role.name} LOGIN CONNECTION LIMIT {limits[role.name]}"]
        found += [f"ALTER ROLE {role.name} SET {name} = '{value}'" for name, value in role.settings.items()]
    found += [
        f"REVOKE ALL ON DATABASE {database} FROM PUBLIC, {both}",
        f"GRANT CONNECT ON DATABASE {database} TO {OWNER}, {both}",
        f"GRANT CREATE, TEMPORARY ON DATABASE {database} TO {OWNER}",
        "CREATE SCHEMA IF NOT EXISTS shoal",
        f"ALTER SCHEMA shoal OWNER TO {OWNER}",
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        f"GRANT USAGE, CREATE ON SCHEMA public TO {OWNER}",
        OWN_EVERYTHING,
    ]
    for schema in SCHEMAS:
        found += [
            f"REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM PUBLIC, {both}",
            f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA {schema} FROM PUBLIC, {both}",
            f"REVOKE ALL ON ALL FUNCTIONS IN SCHEMA {schema} FROM {both}",
            f"REVOKE ALL ON SCHEMA {schema} FROM {both}",
            f"GRANT USAGE ON SCHEMA {schema} TO {both}",
        ]
        later = f"ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} IN SCHEMA {schema}"
        for role in ROLES.values():
            found += [
                f"GRANT {role.tables} ON ALL TABLES IN SCHEMA {schema} TO {role.name}",
                f"GRANT {role.sequences} ON ALL SEQUENCES IN SCHEMA {schema} TO {role.name}",
                f"{later} REVOKE ALL ON TABLES FROM {role.name}",
                f"{later} REVOKE ALL ON SEQUENCES FROM {role.name}",
                f"{later} GRANT {role.tables} ON TABLES TO {role.name}",
                f"{later} GRANT {role.sequences} ON SEQUENCES TO {role.name}",
            ]
    # Functions do with their owner's rights what a worker may not do at large: see migration 0007.
    found += [
        "REVOKE ALL ON ALL FUNCTIONS IN SCHEMA shoal FROM PUBLIC",
        f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA shoal TO {WORKER}",
        f"ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC",
        f"ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} IN SCHEMA shoal GRANT EXECUTE ON FUNCTIONS TO {WORKER}",
    ]
    return [*found, NO_OTHER_DATABASES, NO_LARGE_OBJECTS, SEAL]


def make_roles(database: Database, passwords: Mapping[str, str]) -> list[str]:
    """Make the three roles, give each its rights, and set the passwords that are given, by role.

    Gives the names of other databases of the server to which they may connect all the same. All or
    nothing. `database` is opened as its superuser or as a role that may do this. A password goes over the
    wire as the hash that the server keeps. Raises `DatabaseRefuses` where that role may not,
    `DatabaseUnsuitable` where one of ours can do more than it should.
    """
    with database.begin() as connection:
        name = connection.scalar(text("SELECT current_database()"))
        most = worker_connections(database)
        for statement in statements(str(name), most):
            connection.execute(text(statement))
        for role, password in passwords.items():
            verifier = _verifier(connection, role, password)
            connection.exec_driver_sql(f"ALTER ROLE {role} LOGIN PASSWORD '{verifier}'")
        strong = connection.execute(text(TOO_STRONG), {"roles": list(ROLES)}).all()
        elsewhere = connection.scalars(text(REACHED), {"roles": [OWNER, *ROLES]}).all()
    if strong:
        said = "; ".join(f"{role} is {what}" for role, what in strong)
        raise DatabaseUnsuitable(f"the roles are made, but {said}: take that away (ALTER ROLE, REVOKE)")
    return [str(name) for name in elsewhere]


def seal(database: Database) -> None:
    """After a migration: keep the tables that say which form the others have from the other roles.

    For the owner of the tables; done by anybody else, nothing happens.
    """
    with database.begin() as connection:
        connection.execute(text(SEAL))


def quoted(name: str) -> str:
    """A name as an identifier in SQL."""
    return '"' + name.replace('"', '""') + '"'


def _made(role: str) -> str:
    return (
        f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') "
        f"THEN CREATE ROLE {role} LOGIN; END IF; END $$"
    )


def _verifier(connection: Connection, role: str, password: str) -> str:
    """What the server keeps of a password (SCRAM): no statement, and so no log, holds the password."""
    from psycopg2.extensions import encrypt_password

    driver = connection.connection.driver_connection
    found = str(encrypt_password(password, role, scope=driver, algorithm="scram-sha-256"))
    assert "'" not in found
    return found


BELONG_TO_OWNER = f"""DO $$ BEGIN
    IF NOT pg_has_role(current_user, '{OWNER}', 'USAGE') THEN
        EXECUTE format('GRANT {OWNER} TO %I', current_user);
    END IF;
END $$"""
"""Who isn't the superuser gives away only what he belongs to."""

NO_OTHER_DATABASES = f"""DO $$ DECLARE one name; BEGIN
    FOR one IN
        SELECT datname FROM pg_database
        WHERE datname IN ('postgres', 'template1') AND datname <> current_database()
          AND pg_has_role(current_user, datdba, 'USAGE')
          AND (has_database_privilege('{WORKER}', oid, 'CONNECT, TEMPORARY')
               OR has_database_privilege('{READER}', oid, 'CONNECT, TEMPORARY'))
    LOOP
        EXECUTE format('REVOKE CONNECT, TEMPORARY ON DATABASE %I '
                       'FROM PUBLIC, {OWNER}, {WORKER}, {READER}', one);
    END LOOP;
END $$"""  # noqa: S608 (here and below: only our own names are put in)
"""A new server lets everybody connect there, and make tables that go with the session and fill its disk.
Only a database's owner takes that away, or the superuser; whoever else shall connect needs a GRANT then."""

REACHED = """
SELECT datname FROM pg_database
WHERE datallowconn AND datname <> current_database()
  AND EXISTS (SELECT FROM unnest(CAST(:roles AS name[])) AS role
              WHERE datdba <> CAST(CAST(role AS text) AS regrole)
                AND has_database_privilege(role, pg_database.oid, 'CONNECT'))
ORDER BY datname
"""
"""Other databases that one of them may connect to and does not own."""

NO_LARGE_OBJECTS = """DO $$ DECLARE one regprocedure; BEGIN
    IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        FOR one IN SELECT oid FROM pg_proc WHERE pronamespace = CAST('pg_catalog' AS regnamespace)
                   AND proname IN ('lo_creat', 'lo_create', 'lo_from_bytea')
        LOOP
            EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', one);
        END LOOP;
    END IF;
END $$"""
"""Else everybody may fill the disk with them, also who only reads. Only a superuser can take that away."""

OWN_EVERYTHING = f"""DO $$ DECLARE one record; BEGIN
    FOR one IN
        SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END AS kind,
               CAST(CAST(class.oid AS regclass) AS text) AS name
        FROM pg_class AS class JOIN pg_namespace AS place ON place.oid = class.relnamespace
        WHERE place.nspname IN ('shoal', 'public') AND class.relkind IN ('r', 'p', 'v', 'S')
          AND class.relowner <> CAST('{OWNER}' AS regrole)
          AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = class.oid AND deptype IN ('a', 'i', 'e'))
        UNION ALL
        SELECT 'TYPE', CAST(CAST(kind.oid AS regtype) AS text)
        FROM pg_type AS kind JOIN pg_namespace AS place ON place.oid = kind.typnamespace
        WHERE place.nspname IN ('shoal', 'public') AND kind.typtype = 'e'
          AND kind.typowner <> CAST('{OWNER}' AS regrole)
          AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = kind.oid AND deptype = 'e')
        UNION ALL
        SELECT 'FUNCTION', CAST(CAST(body.oid AS regprocedure) AS text)
        FROM pg_proc AS body JOIN pg_namespace AS place ON place.oid = body.pronamespace
        WHERE place.nspname = 'shoal' AND body.proowner <> CAST('{OWNER}' AS regrole)
    LOOP
        EXECUTE 'ALTER ' || one.kind || ' ' || one.name || ' OWNER TO {OWNER}';
    END LOOP;
END $$"""  # noqa: S608 (only our own names are put in)
"""Tables that another role made before there were three."""

SEAL = f"""DO $$ DECLARE one text; BEGIN
    IF (SELECT count(*) FROM pg_roles WHERE rolname IN ('{OWNER}', '{WORKER}', '{READER}')) = 3
       AND pg_has_role(current_user, '{OWNER}', 'USAGE') THEN
        FOREACH one IN ARRAY ARRAY[{", ".join(f"'{table}'" for table in VERSIONS)}] LOOP
            IF to_regclass(one) IS NOT NULL THEN
                EXECUTE 'REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON ' || one || ' FROM {WORKER}, {READER}';
            END IF;
        END LOOP;
    END IF;
END $$"""  # noqa: S608

TOO_STRONG = """
SELECT rolname, concat_ws(', ', CASE WHEN rolsuper THEN 'a superuser' END,
       CASE WHEN rolcreatedb THEN 'one that makes databases' END,
       CASE WHEN rolcreaterole THEN 'one that makes roles' END,
       CASE WHEN rolreplication THEN 'one that replicates' END,
       CASE WHEN rolbypassrls THEN 'one that passes row security' END,
       (SELECT 'a member of ' || string_agg(CAST(CAST(roleid AS regrole) AS text), ', ')
        FROM pg_auth_members WHERE member = pg_roles.oid HAVING count(*) > 0)) AS what
FROM pg_roles
WHERE rolname = ANY(:roles) AND (rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls
      OR EXISTS (SELECT FROM pg_auth_members WHERE member = pg_roles.oid))
ORDER BY rolname
"""
"""Rights that no grant of ours gives and none takes away."""
