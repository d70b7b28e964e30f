//! A server that a Secret names: where it is, how to log in, how the connection is protected, and which cells may use it.

use std::collections::BTreeMap;

use super::model::ServerCredentials;

/// The annotation of such a Secret that says which cells may use the server: names, or starts of names with `*` behind,
/// separated by commas.
pub const FOR_CELLS: &str = "titan.dev/for-cells";

/// A bundle of authorities goes through the environment of a process, which Linux limits to 128 KiB a variable.
const MAX_CA: usize = 64 * 1024;

/// What a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// PostgreSQL.
    Postgres,
    /// Redis.
    Redis,
}

impl Product {
    const fn port(self) -> u16 {
        match self {
            Product::Postgres => 5432,
            Product::Redis => 6379,
        }
    }
}

/// What a Secret says of a cell that wants its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// The cell may use it.
    Granted,
    /// Other cells may.
    Withheld,
    /// It has no such annotation: it is from before there was one.
    Unsaid,
}

/// Whether a cell may use the server of a Secret with this annotation. Who may create Cells may name any Secret of the
/// operator's namespace, so a Secret has to say for which cells it is.
#[must_use]
pub fn permission(for_cells: Option<&str>, cell: &str) -> Permission {
    let Some(patterns) = for_cells else {
        return Permission::Unsaid;
    };
    let fits = |pattern: &str| match pattern.strip_suffix('*') {
        Some(start) => cell.starts_with(start),
        None => cell == pattern,
    };
    let granted = patterns.split(',').map(str::trim).any(fits);
    if granted {
        Permission::Granted
    } else {
        Permission::Withheld
    }
}

/// Reads the data of a Secret.
///
/// Where nothing is said of TLS, it is asked for: to send passwords in plain text takes a word.
///
/// # Errors
/// What is missing or wrong, and what to do, in a sentence without the Secret's name.
pub fn read_server(
    product: Product,
    data: &BTreeMap<String, Vec<u8>>,
) -> Result<ServerCredentials, String> {
    let text = |key: &str| match data.get(key) {
        None => Ok(None),
        Some(bytes) => String::from_utf8(bytes.clone())
            .map(|text| {
                Some(text.trim_end_matches('\n').to_owned()).filter(|text| !text.is_empty())
            })
            .map_err(|_| format!("the value of {key} is not text")),
    };
    let host =
        text("host")?.ok_or("it has no host; add the server's name or address under host")?;
    let in_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if !host.chars().all(in_name) {
        return Err(format!(
            "host `{host}` is no name or address; a port goes under port, and there is no URL"
        ));
    }
    let port = match text("port")? {
        None => product.port(),
        Some(port) => port
            .parse()
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| format!("port `{port}` is no port number"))?,
    };
    let ca = match text("ca.crt")? {
        None => text("sslrootcert")?,
        ca => ca,
    };
    if let Some(ca) = &ca {
        authorities(ca)?;
    }
    Ok(ServerCredentials {
        host,
        port,
        username: text("username")?.unwrap_or_default(),
        password: text("password")?.unwrap_or_default(),
        sslmode: sslmode(product, text("sslmode")?.as_deref(), ca.is_some())?.to_owned(),
        ca: ca.unwrap_or_default(),
    })
}

fn authorities(ca: &str) -> Result<(), String> {
    if !ca.contains("-----BEGIN CERTIFICATE-----") {
        return Err("ca.crt has no certificate; write the authority's as PEM".to_owned());
    }
    if ca.len() > MAX_CA {
        return Err(format!(
            "ca.crt has {} bytes, and services can be given {MAX_CA}; write only the authority that signs this server's \
             certificate",
            ca.len()
        ));
    }
    Ok(())
}

/// How the connection is protected, in libpq's words.
fn sslmode(product: Product, said: Option<&str>, ca: bool) -> Result<&'static str, String> {
    match (product, said) {
        (_, Some("disable")) => Ok("disable"),
        // A client of Redis either speaks TLS or does not, and one that does checks the certificate and its name.
        (Product::Redis, None | Some("require" | "verify-ca" | "verify-full"))
        | (Product::Postgres, Some("verify-full")) => Ok("verify-full"),
        (Product::Redis, Some(other)) => Err(format!(
            "sslmode `{other}` is none of disable, require and verify-full, which is all that there is for Redis"
        )),
        (Product::Postgres, None) if ca => Ok("verify-full"),
        // As in libpq, where a root certificate is there.
        (Product::Postgres, Some("require")) if ca => Ok("verify-ca"),
        (Product::Postgres, Some("verify-ca")) => Ok("verify-ca"),
        (Product::Postgres, None | Some("require")) => Ok("require"),
        (Product::Postgres, Some("prefer")) => Ok("prefer"),
        (Product::Postgres, Some("allow")) => Ok("allow"),
        (Product::Postgres, Some(other)) => Err(format!(
            "sslmode `{other}` is none of disable, allow, prefer, require, verify-ca and verify-full"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CA: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----";

    fn data(pairs: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()))
            .collect()
    }

    fn read(pairs: &[(&str, &str)]) -> Result<ServerCredentials, String> {
        read_server(Product::Postgres, &data(pairs))
    }

    #[test]
    fn a_server_needs_a_host_and_a_sound_port() {
        let server = read(&[("host", "db\n"), ("port", "6432")]).unwrap();
        assert_eq!((server.host.as_str(), server.port), ("db", 6432));
        assert_eq!(read(&[("host", "db")]).unwrap().port, 5432);
        for (wrong, named) in [
            (&[("port", "1")][..], "host"),
            (&[("host", "")], "host"),
            (&[("host", "postgres://db/x")], "`postgres://db/x`"),
            (&[("host", "db"), ("port", "x")], "`x`"),
            (&[("host", "db"), ("port", "0")], "`0`"),
            (&[("host", "db"), ("ca.crt", "secret")], "ca.crt"),
            (&[("host", "db"), ("sslmode", "requird")], "`requird`"),
        ] {
            let error = read(wrong).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn plain_text_takes_a_word() {
        let mode = |product, pairs: &[(&str, &str)]| {
            let all = [&[("host", "db")], pairs].concat();
            read_server(product, &data(&all)).map(|server| server.sslmode)
        };
        let (postgres, redis) = (Product::Postgres, Product::Redis);
        for (product, pairs, expected) in [
            (postgres, &[][..], "require"),
            (postgres, &[("ca.crt", CA)], "verify-full"),
            (
                postgres,
                &[("sslrootcert", CA), ("sslmode", "require")],
                "verify-ca",
            ),
            (postgres, &[("sslmode", "prefer")], "prefer"),
            (
                postgres,
                &[("sslmode", "disable"), ("ca.crt", CA)],
                "disable",
            ),
            (redis, &[], "verify-full"),
            (redis, &[("sslmode", "require")], "verify-full"),
            (redis, &[("sslmode", "disable")], "disable"),
        ] {
            assert_eq!(
                mode(product, pairs).unwrap(),
                expected,
                "{product:?} {pairs:?}"
            );
        }
        let refused = mode(redis, &[("sslmode", "prefer")]).unwrap_err();
        assert!(refused.contains("`prefer`"), "{refused}");
    }

    #[test]
    fn a_secret_says_for_which_cells_it_is() {
        for (said, cell, expected) in [
            (None, "cell-001", Permission::Unsaid),
            (Some("cell-001"), "cell-001", Permission::Granted),
            (Some("cell-001"), "cell-0011", Permission::Withheld),
            (Some("a, cell-*"), "cell-0011", Permission::Granted),
            (Some("*"), "orders", Permission::Granted),
            (Some("cell-*"), "orders", Permission::Withheld),
            (Some(""), "orders", Permission::Withheld),
        ] {
            assert_eq!(permission(said, cell), expected, "{said:?} {cell}");
        }
    }
}
