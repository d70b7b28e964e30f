//! Which service a request is for: by the gRPC path, or by the first label of the host.

use std::collections::BTreeMap;

use crate::config::{Protocol, Service};

/// The services of the configuration, found by the names that requests carry.
#[derive(Debug, Default)]
pub struct Services {
    list: Vec<ServiceEntry>,
    /// gRPC package names (`order_history`) and positions in the list, sorted.
    by_package: Vec<(Box<str>, usize)>,
}

/// One service.
#[derive(Debug)]
pub struct ServiceEntry {
    /// Its name.
    pub name: Box<str>,
    /// The port of its pods.
    pub port: u16,
    /// What its pods speak.
    pub protocol: Protocol,
}

impl Services {
    /// The services of a configuration.
    #[must_use]
    pub fn new(services: &BTreeMap<String, Service>) -> Self {
        let list: Vec<ServiceEntry> = services
            .iter()
            .map(|(name, service)| ServiceEntry {
                name: name.as_str().into(),
                port: service.port,
                protocol: service.protocol,
            })
            .collect();
        let mut by_package: Vec<(Box<str>, usize)> = list
            .iter()
            .enumerate()
            .map(|(index, entry)| (entry.name.replace('-', "_").into(), index))
            .collect();
        by_package.sort();
        Services { list, by_package }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// A service by its position.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&ServiceEntry> {
        self.list.get(index)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &ServiceEntry> {
        self.list.iter()
    }

    /// The service of a request: `/titan.<service>.v<n>.<Anything>/<Method>`, else `<service>.<anything>` as the host.
    #[must_use]
    pub fn find(&self, path: &str, host: Option<&str>) -> Option<usize> {
        if let Some(package) = package_of(path) {
            return self.by_package(package);
        }
        let label = host?.split(['.', ':']).next()?;
        self.list
            .binary_search_by(|entry| (*entry.name).cmp(label))
            .ok()
    }

    fn by_package(&self, package: &str) -> Option<usize> {
        let at = self
            .by_package
            .binary_search_by(|(name, _)| (**name).cmp(package))
            .ok()?;
        self.by_package.get(at).map(|(_, index)| *index)
    }
}

/// `order` out of `/titan.order.v1.Orders/Get`.
fn package_of(path: &str) -> Option<&str> {
    let (package, rest) = path.strip_prefix("/titan.")?.split_once('.')?;
    let rest = rest.strip_prefix('v')?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let after = rest.get(digits..)?;
    (digits > 0 && after.starts_with('.') && after.contains('/')).then_some(package)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services() -> Services {
        let service = |port| Service {
            port,
            protocol: Protocol::H2,
        };
        Services::new(&BTreeMap::from([
            ("order".to_owned(), service(50001)),
            ("order-history".to_owned(), service(50002)),
            ("cart".to_owned(), service(50003)),
        ]))
    }

    fn found(path: &str, host: Option<&str>) -> Option<String> {
        let services = services();
        let index = services.find(path, host)?;
        Some(services.get(index)?.name.to_string())
    }

    #[test]
    fn a_service_is_found_by_path_or_host() {
        let cases = [
            ("/titan.order.v1.Orders/Get", None, Some("order")),
            (
                "/titan.order_history.v12.History/List",
                None,
                Some("order-history"),
            ),
            (
                "/titan.order.v1.Orders/Get",
                Some("cart.example.com"),
                Some("order"),
            ),
            (
                "/grpc.health.v1.Health/Check",
                Some("cart.example.com"),
                Some("cart"),
            ),
            (
                "/socket",
                Some("order-history.example.com:8080"),
                Some("order-history"),
            ),
            ("/socket", Some("cart"), Some("cart")),
            ("/socket", Some("carts.example.com"), None),
            ("/socket", None, None),
            (
                "/titan.nobody.v1.Orders/Get",
                Some("cart.example.com"),
                None,
            ),
            ("/titan.order.vX.Orders/Get", None, None),
            ("/titan.order.v1", None, None),
            ("/titan.order-history.v1.History/List", None, None),
        ];
        for (uri, host, wanted) in cases {
            assert_eq!(found(uri, host).as_deref(), wanted, "{uri} {host:?}");
        }
    }
}
