//! The data home's SQL with places to stop at, and with faults.

use cell_kit::ownership::BOOTSTRAP_SQL;

/// Replaces what has to be there exactly once.
pub fn replaced(sql: &str, old: &str, new: &str) -> String {
    assert_eq!(sql.matches(old).count(), 1, "to be replaced: {old}");
    sql.replace(old, new)
}

/// A fence stops at a failpoint whose name the session has in `test.pause`, until nobody holds the advisory lock (4242, 1).
pub fn pausing() -> String {
    let mut sql = BOOTSTRAP_SQL.to_owned();
    for name in ["fence_quiet", "fence_closed", "fence_drained"] {
        let pause = format!(
            "IF current_setting('test.pause', true) = '{name}' THEN
                 PERFORM pg_advisory_xact_lock(4242, 1); COMMIT;
             END IF;"
        );
        sql = replaced(&sql, &format!("/* failpoint {name} */"), &pause);
    }
    sql
}

/// Statements of guard and fence are now and then some milliseconds apart.
pub fn sleepy(sql: &str, share: f64, longest: f64) -> String {
    let sleep =
        format!("IF random() < {share} THEN PERFORM pg_sleep(random() * {longest}); END IF;");
    let parts: Vec<&str> = sql.split("/* failpoint ").collect();
    assert_eq!(parts.len(), 7, "failpoints in titan.sql");
    let mut sleepy = parts[0].to_owned();
    for part in &parts[1..] {
        let (_, rest) = part.split_once(" */").unwrap();
        sleepy.push_str(&sleep);
        sleepy.push_str(rest);
    }
    sleepy
}
