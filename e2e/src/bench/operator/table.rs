//! The result for people.

use serde_json::Value;

/// Prints it.
pub fn table(result: &Value) {
    let create = &result["create"];
    println!(
        "\n{:<26} {:>9} {:>12} {:>22} {:>26}",
        "creating objects", "objects", "objects/s", "apiserver CPU/object", "with its client's"
    );
    for (name, key) in [
        ("operator", "operator"),
        ("bare create loop", "bare"),
        ("kubectl apply", "kubectl"),
    ] {
        let row = &create[key];
        println!(
            "{name:<26} {:>9} {:>12} {:>19} ms {:>23} ms",
            row["objects"],
            row["objectsPerSecond"],
            row["apiserverCpuMsPerObject"],
            row["cpuMsPerObject"]
        );
    }
    let mut facts = vec![
        (
            "operator / bare loop",
            create["operatorToBare"].clone(),
            "aim: at least 0.8",
        ),
        (
            "the same by CPU an object",
            create["operatorToBareByCpu"].clone(),
            "the apiserver, its etcd and who asks",
        ),
        (
            "operator / kubectl",
            create["operatorToKubectl"].clone(),
            "aim: above 10",
        ),
    ];
    let nodes = &result["nodes"];
    if !nodes.is_null() {
        facts.extend([
            (
                "all objects, with nodes, s",
                nodes["acceptedSeconds"].clone(),
                "",
            ),
            ("all cells Ready, s", nodes["readySeconds"].clone(), ""),
            ("API writes a cell", nodes["writesPerCell"].clone(), ""),
            (
                "status writes a cell",
                nodes["statusWritesPerCell"].clone(),
                "aim: one a change",
            ),
            (
                "reconcile p99, s",
                nodes["reconcileSeconds"]["p99"].clone(),
                "",
            ),
            (
                "peak RSS, MiB",
                nodes["process"]["peakRssMiB"].clone(),
                "aim: below 60",
            ),
            (
                "RSS at rest, MiB",
                nodes["steady"]["process"]["rssMiB"].clone(),
                "aim: below 60",
            ),
            (
                "RSS per 1,000 objects, MiB",
                nodes["rssMiBPerThousandObjects"].clone(),
                "aim: 3",
            ),
            (
                "CPU seconds until Ready",
                nodes["process"]["cpuSeconds"].clone(),
                "",
            ),
            (
                "writes at rest",
                nodes["steady"]["writes"].clone(),
                "aim: 0",
            ),
            (
                "CPU seconds at rest",
                nodes["steady"]["cpuSeconds"].clone(),
                "",
            ),
        ]);
    }
    println!();
    for (name, value, aim) in facts {
        println!("{name:<26} {:>9}   {aim}", value.to_string());
    }
    println!();
}
