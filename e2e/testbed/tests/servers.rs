//! Each server starts, answers, and dies when it should.

use std::net::TcpStream;
use std::path::Path;
use std::thread;

use titan_testbed::{Postgres, apiserver, kafka, postgres, redis};

#[test]
fn databases_are_fresh_and_passwords_are_checked() {
    // From a thread that ends: the server must outlive the thread that asked for it.
    let first = thread::spawn(postgres).join().unwrap().unwrap();
    let second = postgres().unwrap();
    assert_eq!(first.port, second.port);
    assert_ne!(first.name, second.name);

    let own = Postgres::start().unwrap();
    assert_ne!(own.maintenance().port, first.port);
    assert_eq!(own.sql("SELECT 40 + 2").unwrap().trim(), "42");
    let stranger = own.maintenance().url_as("postgres", "guess");
    let psql = titan_testbed::cache::postgres_executable("psql").unwrap();
    assert!(
        titan_testbed::process::run(None, &psql, &["-d", &stranger, "-c", "SELECT 1"], &[])
            .is_err()
    );
    let port = own.maintenance().port;
    drop(own);
    assert!(
        TcpStream::connect(("127.0.0.1", port)).is_err(),
        "a dropped server still answers"
    );
}

#[test]
fn each_redis_is_fresh_and_stops_when_dropped() {
    let (first, second) = (redis().unwrap(), redis().unwrap());
    assert_ne!(first.port(), second.port());
    let port = first.port();
    drop(first);
    assert!(
        TcpStream::connect(("127.0.0.1", port)).is_err(),
        "a dropped server still answers"
    );
    assert!(TcpStream::connect(("127.0.0.1", second.port())).is_ok());
}

#[test]
fn the_api_serves_our_kinds_and_logs_who_wrote() {
    let api = apiserver().unwrap();
    api.apply(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crds/manifests"))
        .unwrap();
    assert!(api.kubectl(&["get", "cells"]).is_ok());
    let log = std::fs::read_to_string(api.audit_log()).unwrap();
    assert!(
        log.contains("\"userAgent\":\"kubectl/"),
        "the audit log does not name kubectl"
    );
}

#[test]
fn controllers_empty_a_deleted_namespace() {
    let api = apiserver().unwrap();
    let _controllers = api.start_controllers(&["namespace-controller"]).unwrap();
    api.kubectl(&["create", "namespace", "doomed"]).unwrap();
    api.kubectl(&["create", "configmap", "-n", "doomed", "content"])
        .unwrap();
    api.kubectl(&["delete", "namespace", "doomed", "--timeout=30s"])
        .unwrap();
}

#[test]
fn kafka_listens() {
    assert!(TcpStream::connect(kafka().unwrap().bootstrap()).is_ok());
}
