//! Values that make no sense are refused with the name of the value, before anything is rendered.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail like tests"
)]

mod common;

use common::{EVERYTHING, NAMESPACE, helm, object, render, try_render};

#[test]
fn bad_values_are_refused_by_name() {
    let bad = [
        ("replicas=2", "replicas"),
        (r#"operator={"replica":2}"#, "replica"),
        (r#"operator={"replicas":0}"#, "/operator/replicas"),
        (r#"operator={"replicas":"two"}"#, "/operator/replicas"),
        (r#"operator={"resources":{"request":{}}}"#, "request"),
        (
            r#"operator={"resources":{"requests":{"memory":"64 MB"}}}"#,
            "/operator/resources/requests/memory",
        ),
        (
            r#"operator={"tolerations":[{"effect":"Never"}]}"#,
            "/operator/tolerations/0/effect",
        ),
        (r#"images={"tag":"with space"}"#, "/images/tag"),
        (r#"images={"pullPolicy":"Sometimes"}"#, "/images/pullPolicy"),
        (r#"images={"repository":"titan/"}"#, "/images/repository"),
        (
            r#"images={"pullSecrets":[{"name":"registry"}]}"#,
            "/images/pullSecrets/0",
        ),
        (r#"clusterDomain="""#, "/clusterDomain"),
        (r#"kafka={"bootstrap":"kafka"}"#, "/kafka/bootstrap"),
        (r#"kafka={"brokers":"kafka:9092"}"#, "brokers"),
        (r#"log={"format":"xml"}"#, "/log/format"),
        (
            r#"router={"services":{"order":0}}"#,
            "/router/services/order",
        ),
        (
            r#"router={"services":{"order":9090}}"#,
            "/router/services/order",
        ),
        (r#"router={"services":{"Order":50001}}"#, "Order"),
        (
            r#"router={"services":{"chat":{"port":50004,"protocol":"h3"}}}"#,
            "/router/services/chat",
        ),
        (r#"router={"trustedPeers":"all"}"#, "/router/trustedPeers"),
        (r#"router={"jwt":{"issuer":"https://id.example"}}"#, "jwks"),
        (
            r#"router={"jwt":{"jwks":"id.example/keys"}}"#,
            "/router/jwt/jwks",
        ),
        (r#"router={"config":{"services":{}}}"#, "services"),
        (r#"router={"fleet":"Main Fleet"}"#, "/router/fleet"),
        (
            r#"router={"service":{"type":"ExternalName"}}"#,
            "/router/service/type",
        ),
        (
            r#"networkPolicy={"routerFrom":[{}]}"#,
            "/networkPolicy/routerFrom/0",
        ),
        (
            r#"networkPolicy={"externalStorePorts":[70000]}"#,
            "/networkPolicy/externalStorePorts/0",
        ),
        (
            r#"networkPolicy={"dnsPorts":[0]}"#,
            "/networkPolicy/dnsPorts/0",
        ),
        (
            r#"monitoring={"podMonitor":{"interval":"often"}}"#,
            "/monitoring/podMonitor/interval",
        ),
        (
            r#"monitoring={"rules":{"runbookBase":"https://wiki.example/"}}"#,
            "/monitoring/rules/runbookBase",
        ),
        (r#"crds={"install":"yes"}"#, "/crds/install"),
        (r#"argocd={"namespace":"argocd"}"#, "namespace"),
    ];
    for (value, name) in bad {
        match try_render(&[value]) {
            Ok(_) => panic!("{value} was accepted"),
            Err(said) => {
                // helm prints the place as /a/b or as a.b, by its version.
                let dotted = name.trim_start_matches('/').replace('/', ".");
                assert!(
                    said.contains("schema") && (said.contains(name) || said.contains(&dotted)),
                    "{value}: helm does not name {name}: {said}"
                );
            }
        }
    }
}

#[test]
fn the_chart_passes_lint() {
    let chart = titan_chart_tests::chart().display().to_string();
    let kubernetes = titan_testbed::cache::KUBERNETES;
    let output = helm(&[
        "lint",
        "--strict",
        &chart,
        "--namespace",
        NAMESPACE,
        "--kube-version",
        kubernetes,
    ]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    render(&EVERYTHING);
}

#[test]
fn contradictions_are_refused_with_the_way_out() {
    let contradictions = [
        (
            r#"router={"trustedPeers":"secret"}"#,
            "needs router.trustSecretName or router.tls.clientCa",
        ),
        (
            r#"router={"trustSecretName":"peers"}"#,
            "without router.trustedPeers=secret",
        ),
        (
            r#"router={"tls":{"clientCa":true}}"#,
            "needs router.tls.secretName",
        ),
    ];
    for (value, wanted) in contradictions {
        let said = try_render(&[value]).unwrap_err();
        assert!(said.contains(wanted), "{value}: {said}");
    }
}

#[test]
fn the_router_is_told_whom_to_trust() {
    let config = |values: &str| {
        let objects = render(&[values]);
        let text = object(&objects, "ConfigMap", "cell-router")["data"]["router.yaml"]
            .as_str()
            .unwrap()
            .to_owned();
        let mounts =
            object(&objects, "Deployment", "cell-router")["spec"]["template"]["spec"]["volumes"]
                .clone();
        (
            serde_yaml::from_str::<serde_json::Value>(&text).unwrap(),
            mounts.to_string(),
        )
    };
    let (default, _) = config(r#"router={}"#);
    assert_eq!(default["trustedPeers"], "none");
    let (all, volumes) = config(
        r#"router={"trustedPeers":"secret","trustSecretName":"peers","tls":{"secretName":"front","clientCa":true},
           "jwt":{"jwks":"https://id.example/keys"},"config":{"limits":{"perKeyRate":100}}}"#,
    );
    assert_eq!(all["trustSecretFile"], "/etc/titan-trust/secret");
    assert_eq!(all["tls"]["clientCa"], "/etc/titan-tls/ca.crt");
    assert_eq!(all["jwt"]["jwks"], "https://id.example/keys");
    assert_eq!(all["limits"]["perKeyRate"], 100);
    assert_eq!(all["services"]["order"], 50001);
    for secret in ["peers", "front"] {
        assert!(
            volumes.contains(&format!(r#""secretName":"{secret}""#)),
            "{volumes}"
        );
    }
}

#[test]
fn another_namespace_is_refused() {
    let chart = titan_chart_tests::chart().display().to_string();
    let kubernetes = titan_testbed::cache::KUBERNETES;
    let output = helm(&[
        "template",
        "titan",
        &chart,
        "--namespace",
        "default",
        "--kube-version",
        kubernetes,
    ]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("use --namespace titan-system"), "{said}");
}

#[test]
fn images_come_from_the_values() {
    let objects = render(&[
        r#"images={"repository":"registry.example/titan","tag":"v7","pullSecrets":["registry"]}"#,
    ]);
    for name in ["titan-operator", "cell-router"] {
        let pod = &object(&objects, "Deployment", name)["spec"]["template"]["spec"];
        assert_eq!(
            pod["containers"][0]["image"],
            format!("registry.example/titan/{name}:v7")
        );
        assert_eq!(pod["imagePullSecrets"][0]["name"], "registry");
    }
}

#[test]
fn a_change_of_the_routers_configuration_restarts_it() {
    let checksum = |objects: &[serde_json::Value]| {
        let annotations = &object(objects, "Deployment", "cell-router")["spec"]["template"]["metadata"]
            ["annotations"];
        annotations["checksum/config"].as_str().unwrap().to_owned()
    };
    assert_ne!(
        checksum(&render(&[])),
        checksum(&render(&[r#"router={"services":{"payment":50002}}"#]))
    );
}

#[test]
fn a_service_that_speaks_http_1_can_be_behind_the_router() {
    let objects = render(&[r#"router={"services":{"chat":{"port":50004,"protocol":"h1"}}}"#]);
    let config = object(&objects, "ConfigMap", "cell-router")["data"]["router.yaml"].clone();
    let config = cell_router::config::Config::parse(config.as_str().unwrap()).unwrap();
    let chat = &config.services["chat"];
    assert_eq!(
        (chat.port, chat.protocol),
        (50004, cell_router::config::Protocol::H1)
    );
    let policy = object(&objects, "NetworkPolicy", "cell-router").to_string();
    assert!(policy.contains(r#"{"port":50004}"#), "{policy}");
}

#[test]
fn ports_of_kafka_and_of_the_services_are_opened() {
    let objects = render(&EVERYTHING);
    let ports = |name: &str| {
        let policy = object(&objects, "NetworkPolicy", name);
        let rules = policy["spec"]["egress"].as_array().unwrap();
        rules
            .iter()
            .flat_map(|rule| rule["ports"].as_array().unwrap())
            .map(|port| port["port"].as_i64().unwrap())
            .collect::<Vec<_>>()
    };
    for port in [9094, 9095, 6443, 5432, 6379, 53] {
        assert!(ports("titan-operator").contains(&port), "{port}");
    }
    for port in [50001, 50003, 50020, 50100, 53] {
        assert!(ports("cell-router").contains(&port), "{port}");
    }
    assert!(
        !ports("titan-operator").contains(&8008),
        "nothing asks Patroni"
    );
}

#[test]
fn ports_that_differ_between_clusters_are_values() {
    let objects = render(&[
        r#"kafka={"bootstrap":"kafka:9094","listenerPorts":[32001,32002]}"#,
        r#"networkPolicy={"apiserverPorts":[16443],"dnsPorts":[5353]}"#,
    ]);
    let egress = |name: &str| object(&objects, "NetworkPolicy", name)["spec"]["egress"].to_string();
    for port in [9094, 32001, 32002, 16443, 5353] {
        let opened = format!(r#""port":{port}"#);
        assert!(egress("titan-operator").contains(&opened), "{port}");
    }
    assert!(egress("cell-router").contains(r#""port":5353"#));
    for port in [6443, 53] {
        let closed = format!(r#""port":{port}}}"#);
        let closed_for = format!(r#""port":{port},"#);
        for policy in [egress("titan-operator"), egress("cell-router")] {
            assert!(
                !policy.contains(&closed) && !policy.contains(&closed_for),
                "{policy}"
            );
        }
    }
}
