//! The files that packages install: the configuration with its comments is what the daemon reads and defaults to.

use node::config::Config;
use std::path::Path;

const CONFIG: &str = include_str!("../../etc/claudefsd.toml");

#[test]
fn the_configuration_file_is_accepted() {
    let config = Config::parse(CONFIG, Path::new("claudefsd.toml")).expect("as installed");
    assert_eq!(config, Config { devices: config.devices.clone(), ..Config::default() });
}

/// systemd itself judges the units, where it is installed. Programs that they name need not be.
#[test]
fn the_units_are_accepted_by_systemd() {
    let dir = tempfile::tempdir().expect("a folder");
    let service = include_str!("../../systemd/claudefsd.service");
    let service = service.replace("/usr/local/sbin/claudefsd", "/bin/true");
    let mount = include_str!("../../systemd/mnt-claudefs.mount");
    let mut paths = Vec::new();
    for (name, text) in [("claudefsd.service", service.as_str()), ("mnt-claudefs.mount", mount)] {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        paths.push(path);
    }
    let mut verify = std::process::Command::new("systemd-analyze");
    verify.args(["verify", "--man=no", "--recursive-errors=no"]).args(&paths);
    match verify.output() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("not checked: systemd-analyze is not installed");
        }
        out => {
            let out = out.expect("it runs");
            let said = String::from_utf8_lossy(&out.stderr);
            // Other units of the machine are none of our business: what concerns ours names them.
            let ours = |l: &&str| l.contains("claudefsd.service") || l.contains("mnt-claudefs.mount");
            assert_eq!(said.lines().find(ours), None, "{said}");
        }
    }
}

#[test]
fn its_comments_tell_the_true_defaults_of_every_key() {
    // `# key = value   # what it is` becomes a setting.
    let is_setting = |line: &str| line.strip_prefix("# ").is_some_and(|l| l.split(' ').nth(1) == Some("="));
    let lines = CONFIG.lines().map(|l| if is_setting(l) { l.trim_start_matches("# ") } else { l });
    let all: String = lines.flat_map(|l| [l, "\n"]).collect();
    let told = Config::parse(&all, Path::new("claudefsd.toml")).expect("every comment is a setting");
    assert_eq!(told, Config { devices: told.devices.clone(), ..Config::default() });
    // Every key that the daemon knows is there.
    for line in told.to_toml().lines().filter(|l| l.contains(" = ")) {
        let key = line.split(' ').next().unwrap_or_default();
        assert!(all.lines().any(|l| l.starts_with(&format!("{key} = "))), "`{key}` is missing");
    }
}
