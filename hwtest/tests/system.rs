//! The mount as a part of the system: mount(8), fstab, findmnt, df, other users, and programs whose client has died.
//!
//! What needs a helper in /sbin, another /dev or a table of its own runs in a mount namespace of its own (unshare(1)), so
//! that the machine is left as it is.

use hwtest::rig::{Rig, Setup, bounded, said};
use std::process::{Command, Output};

/// Functions of every script. Whatever a script leaves mounted goes with it, so that its clients end.
const PRELUDE: &str = r#"
fail() { echo "failed: $*" >&2; exit 1; }
refused() { if "$@" >"$DIR/said" 2>&1; then cat "$DIR/said"; fail "not refused: $*"; fi; cat "$DIR/said"; }
is() { [ "$2" = "$3" ] || fail "$1: \`$2\` is not \`$3\`"; }
cleanup() {
    umount -l "$DIR/mnt" 2>/dev/null || true
}
trap cleanup EXIT
mkdir -p "$DIR/mnt"
"#;

/// Runs a script in a mount namespace of its own.
fn privately(rig: &Rig, script: &str) -> Output {
    let out = bounded(
        Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-euc", &format!("{PRELUDE}\n{script}")])
            .env("DIR", &rig.dir)
            .env("CLAUDEFS", &rig.programs.claudefs)
            .env("KEY", rig.key())
            .env("ADDRESS", rig.address().to_string())
            .env("PID", std::process::id().to_string())
            .env("LC_ALL", "C"),
    );
    out.expect("it ends")
}

#[track_caller]
fn succeeds(rig: &Rig, script: &str) -> String {
    let out = privately(rig, script);
    assert!(out.status.success(), "{}\n{}", said(&out), rig.tail());
    said(&out)
}

fn served() -> Rig {
    Rig::start(&Setup::default()).expect("a daemon")
}

/// `mount -t claudefs` finds its helper by name; the machine's own /sbin is hidden by one that has nothing else.
const HELPER: &str = r#"
mkdir "$DIR/sbin"
mount -t tmpfs tmpfs "$DIR/sbin"
ln -s "$CLAUDEFS" "$DIR/sbin/mount.claudefs"
mount --bind "$DIR/sbin" /sbin
"#;

#[test]
fn mount_by_fstab_keeps_every_option() {
    let rig = served();
    let script = r#"
    options=ro,noatime,nodev,nosuid,noexec,_netdev
    echo "$ADDRESS:/ $DIR/mnt claudefs $options,key=$KEY 0 0" >"$DIR/fstab"
    mount -T "$DIR/fstab" "$DIR/mnt"
    is source "$(findmnt -nro SOURCE "$DIR/mnt")" "$ADDRESS:/"
    # The kernel names a FUSE mount after its subtype.
    is type "$(findmnt -nro FSTYPE "$DIR/mnt")" fuse.claudefs
    is listed "$(findmnt -nro TARGET -t fuse.claudefs | grep -c "^$DIR/mnt\$")" 1
    kept=$(findmnt -nro OPTIONS "$DIR/mnt")
    for option in ro noatime nodev nosuid noexec; do
        case ",$kept," in *,$option,*) ;; *) fail "$option is not in $kept" ;; esac
    done
    refused touch "$DIR/mnt/file" | grep -q 'Read-only file system' || fail "another refusal"
    # A second `mount -a`, as at each boot, finds it mounted.
    mount -a -T "$DIR/fstab"
    is layers "$(findmnt -nro TARGET "$DIR/mnt" | wc -l)" 1
    umount "$DIR/mnt"
    ! mountpoint -q "$DIR/mnt" || fail "it is still mounted"
    # A mistake in the line is told with mount(8)'s own exit code and the way out.
    echo "$ADDRESS:/ $DIR/mnt claudefs noatmie,key=$KEY 0 0" >"$DIR/fstab"
    refused mount -T "$DIR/fstab" "$DIR/mnt"
    "#;
    let text = succeeds(&rig, &format!("{HELPER}{script}"));
    assert!(text.contains("noatmie") && text.contains("known are"), "{text}");
}

#[test]
fn mount_by_name_serves_df_and_remounts() {
    let rig = served();
    let script = r#"
    mount -t claudefs -o "key=$KEY" "$ADDRESS:/" "$DIR/mnt"
    echo kept >"$DIR/mnt/file"
    set -- $(df --output=itotal,iused,iavail "$DIR/mnt" | tail -1)
    [ "$1" -gt 0 ] && [ "$2" -gt 0 ] && [ "$3" -gt 0 ] || fail "df -i says $*"
    set -- $(df -B1 --output=size,used,avail "$DIR/mnt" | tail -1)
    [ "$1" -gt 1000000000 ] && [ "$3" -gt 0 ] || fail "df says $*"
    mount -o remount,ro "$DIR/mnt"
    refused touch "$DIR/mnt/new" >/dev/null
    mount -o remount,rw "$DIR/mnt"
    touch "$DIR/mnt/new"
    # A subdirectory can be what is mounted.
    mkdir "$DIR/mnt/sub" && echo below >"$DIR/mnt/sub/file"
    umount "$DIR/mnt"
    mount -t claudefs -o "key=$KEY" "$ADDRESS:/sub" "$DIR/mnt"
    is below "$(cat "$DIR/mnt/file")" below
    is source "$(findmnt -nro SOURCE "$DIR/mnt")" "$ADDRESS:/sub"
    umount "$DIR/mnt"
    refused mount -t claudefs -o "key=$KEY" "$ADDRESS:/none" "$DIR/mnt"
    "#;
    let text = succeeds(&rig, &format!("{HELPER}{script}"));
    assert!(text.contains("/none"), "{text}");
}

#[test]
fn mount_in_use_is_detached_or_refused() {
    let rig = served();
    let script = r#"
    "$CLAUDEFS" mount "$ADDRESS:/" "$DIR/mnt" -o "key=$KEY"
    echo one >"$DIR/mnt/file"
    exec 3<>"$DIR/mnt/file"
    refused "$CLAUDEFS" umount "$DIR/mnt"
    refused umount "$DIR/mnt" >/dev/null
    umount -l "$DIR/mnt"
    ! mountpoint -q "$DIR/mnt" || fail "it is still there"
    # Who has a file open goes on working in it.
    read -r line <&3; is line "$line" one
    echo two >&3
    "$CLAUDEFS" mount "$ADDRESS:/" "$DIR/mnt" -o "key=$KEY"
    is "the other mount" "$(tail -1 "$DIR/mnt/file")" two
    exec 3<&-
    "$CLAUDEFS" umount "$DIR/mnt"
    refused "$CLAUDEFS" umount "$DIR/mnt"
    "#;
    let text = succeeds(&rig, script);
    for word in ["is in use", "--lazy", "fuser -vm", "is not a mount point"] {
        assert!(text.contains(word), "`{word}` is missing in: {text}");
    }
}

/// A client killed with files open: the mount says so, is cleared by either command, and its data is there again.
#[test]
fn mount_of_a_killed_client_is_cleared_by_both_commands() {
    // What the killed client held is free once its lease is over.
    let config = "[lease]\ntime_ms = 2000\ngrace_ms = 2000".to_owned();
    let rig = Rig::start(&Setup { config, ..Setup::default() }).expect("a daemon");
    let script = r#"
    for clear in "$CLAUDEFS umount" umount; do
        "$CLAUDEFS" mount "$ADDRESS:/" "$DIR/mnt" -o "key=$KEY,foreground" 2>"$DIR/mount.log" &
        client=$!
        until mountpoint -q "$DIR/mnt"; do kill -0 $client || fail "the client ended"; sleep 0.05; done
        echo "$clear" >"$DIR/mnt/file"
        cd "$DIR/mnt"; exec 3<file
        kill -9 $client; wait $client || true
        cd /
        refused "$CLAUDEFS" mount "$ADDRESS:/" "$DIR/mnt" -o "key=$KEY"
        exec 3<&-
        $clear "$DIR/mnt"
        ! mountpoint -q "$DIR/mnt" || fail "$clear does not clear it"
        "$CLAUDEFS" mount "$ADDRESS:/" "$DIR/mnt" -o "key=$KEY"
        is data "$(cat "$DIR/mnt/file")" "$clear"
        "$CLAUDEFS" umount "$DIR/mnt"
    done
    "#;
    let text = succeeds(&rig, script);
    assert!(text.contains("client is gone") && text.contains("claudefs umount"), "{text}");
}

/// Two users, neither of them root: mode bits and ACLs decide, with no option given.
#[test]
fn mount_lets_others_in_with_ordinary_permissions() {
    let rig = served();
    let script = r#"
    as() { user=$1; shift; setpriv --reuid "$user" --regid "$user" --clear-groups sh -euc "$*"; }
    chmod 755 "$DIR"
    "$CLAUDEFS" mount "$ADDRESS:/" "$DIR/mnt" -o "key=$KEY"
    chmod 1777 "$DIR/mnt"; cd "$DIR/mnt"
    as 4001 'umask 077; echo secret >mine; mkdir home'
    is owner "$(stat -c %u:%g:%a mine)" 4001:4001:600
    refused as 4002 'cat mine' | grep -q 'Permission denied' || fail "the mode is not checked"
    refused as 4002 'rm -f mine' >/dev/null
    refused as 4002 'ls home' >/dev/null
    as 4001 'setfacl -m u:4002:r mine; setfacl -m u:4002:x home; echo x >home/known; chmod 644 home/known'
    is "by ACL" "$(as 4002 'cat mine')" secret
    refused as 4002 'echo more >>mine' >/dev/null
    refused as 4002 'ls home' >/dev/null
    is "through a folder by ACL" "$(as 4002 'cat home/known')" x
    refused as 4002 'setfacl -b mine' >/dev/null
    as 4001 'setfacl -b mine'
    refused as 4002 'cat mine' >/dev/null
    # Root of the machine is root of the mount; nobody else gives files away.
    refused as 4001 'chown 4002 mine' >/dev/null
    chown 4002 mine
    is given "$(as 4002 'cat mine')" secret
    cd /
    "#;
    succeeds(&rig, script);
}
