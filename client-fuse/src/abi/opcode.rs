//! Numbers of the requests.

macro_rules! opcodes {
    ($($name:ident = $n:literal, $doc:literal;)*) => {
        $(#[doc = $doc] pub const $name: u32 = $n;)*
        /// The protocol's name of an opcode, `"?"` where it has none.
        #[must_use]
        pub const fn name(opcode: u32) -> &'static str {
            match opcode { $($n => stringify!($name),)* _ => "?" }
        }
    };
}

opcodes! {
    LOOKUP = 1, "Name in a directory to node.";
    FORGET = 2, "The kernel dropped references to a node; no reply.";
    GETATTR = 3, "Attributes.";
    SETATTR = 4, "Change attributes.";
    READLINK = 5, "Target of a symbolic link.";
    SYMLINK = 6, "New symbolic link.";
    MKNOD = 8, "New node other than a directory or a link.";
    MKDIR = 9, "New directory.";
    UNLINK = 10, "Remove a name.";
    RMDIR = 11, "Remove a directory.";
    RENAME = 12, "Rename without flags.";
    LINK = 13, "New name of an existing node.";
    OPEN = 14, "Open a file.";
    READ = 15, "Read.";
    WRITE = 16, "Write.";
    STATFS = 17, "Totals of the file system.";
    RELEASE = 18, "Last close of an open file.";
    FSYNC = 20, "Make a file durable.";
    SETXATTR = 21, "Set an extended attribute.";
    GETXATTR = 22, "Read an extended attribute.";
    LISTXATTR = 23, "Names of extended attributes.";
    REMOVEXATTR = 24, "Remove an extended attribute.";
    FLUSH = 25, "Each close of an open file.";
    INIT = 26, "First message: versions and capabilities.";
    OPENDIR = 27, "Open a directory.";
    READDIR = 28, "Page of a directory.";
    RELEASEDIR = 29, "Last close of an open directory.";
    FSYNCDIR = 30, "Make a directory durable.";
    GETLK = 31, "Who holds a conflicting lock.";
    SETLK = 32, "Take or release a lock, at once.";
    SETLKW = 33, "Take a lock, waiting.";
    ACCESS = 34, "access(2) where the kernel does not check.";
    CREATE = 35, "Create and open.";
    INTERRUPT = 36, "The caller of another request got a signal.";
    BMAP = 37, "Block of a file on a block device.";
    DESTROY = 38, "Last message of a block-device mount.";
    IOCTL = 39, "Device control.";
    POLL = 40, "Readiness.";
    NOTIFY_REPLY = 41, "Answer to a retrieve notification.";
    BATCH_FORGET = 42, "Many FORGETs.";
    FALLOCATE = 43, "Allocate, punch, zero.";
    READDIRPLUS = 44, "Page of a directory with attributes.";
    RENAME2 = 45, "Rename with flags.";
    LSEEK = 46, "Next hole or data.";
    COPY_FILE_RANGE = 47, "Copy within the file system.";
    SETUPMAPPING = 48, "Map a window (virtiofs).";
    REMOVEMAPPING = 49, "Unmap a window (virtiofs).";
    SYNCFS = 50, "Make all durable (trusted servers only).";
    TMPFILE = 51, "Create and open without a name.";
    STATX = 52, "Attributes with birth time.";
    COPY_FILE_RANGE_64 = 53, "Copy with a 64-bit result.";
    CUSE_INIT = 4096, "First message of a character device in user space.";
}
