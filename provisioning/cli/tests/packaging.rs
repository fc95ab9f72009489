//! The files that packages install: the configuration with its comments is what the daemon reads and defaults to.

use node::config::Config;
use std::path::Path;

const CONFIG: &str = include_str!("../../etc/claudefsd.toml");

#[test]
fn the_configuration_file_is_accepted() {
    let config = Config::parse(CONFIG, Path::new("claudefsd.toml")).expect("as installed");
    assert_eq!(config, Config { devices: config.devices.clone(), ..Config::default() });
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
