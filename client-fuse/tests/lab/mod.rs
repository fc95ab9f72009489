//! A mount of the in-memory service on the real kernel, with a line to the thread that serves it.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

mod service;

pub use service::Lab;

use client_fuse::{Mount, MountConfig, MountStats, Options, Unmount};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

type Task = Box<dyn FnOnce(Rc<Lab>, Rc<Mount>) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// Unmounts at its end.
pub struct Mounted {
    dir: tempfile::TempDir,
    tasks: Option<reactor::mail::Sender<Task>>,
    thread: Option<JoinHandle<Result<(), client_fuse::Error>>>,
}

/// Says loudly, past the test harness's capture, that a test can't run here.
fn skipped(why: &str) {
    let name = std::thread::current().name().unwrap_or("?").to_owned();
    let _ = writeln!(std::io::stderr(), "\n*** SKIPPED (not passed): {name}: {why}");
}

pub fn mounted() -> Option<Mounted> {
    mounted_with("", "/", |_| {})
}

/// Mounts with these options; `None`, said loudly, where this machine can't.
pub fn mounted_with(
    options: &str,
    path: &str,
    prepare: impl FnOnce(&Lab) + Send + 'static,
) -> Option<Mounted> {
    if !rustix::process::geteuid().is_root() {
        skipped("mounting takes root");
        return None;
    }
    if let Err(error) = std::fs::File::open("/dev/fuse") {
        skipped(&format!("/dev/fuse does not open: {error}"));
        return None;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mut parsed = Options::default();
    parsed.parse(options).expect("known options");
    let config = MountConfig {
        source: format!("lab:{path}"),
        mountpoint: dir.path().to_owned(),
        path: path.to_owned(),
        options: parsed,
        arena: None,
    };
    let (tasks, mut inbox) = reactor::mail::channel::<Task>(64);
    let (up, is_up) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let serve = async move {
            let lab = Rc::new(Lab::default());
            prepare(&lab);
            make_dirs(&lab, &config.path).await;
            let mut mount = match Mount::start(config, Rc::clone(&lab)).await {
                Ok(mount) => Rc::new(mount),
                Err(error) => {
                    up.send(Err(error.to_string())).expect("somebody waits");
                    return Err(error);
                }
            };
            up.send(Ok(())).expect("somebody waits");
            while let Some(task) = inbox.recv().await {
                reactor::spawn(task(Rc::clone(&lab), Rc::clone(&mount)));
            }
            loop {
                match Rc::get_mut(&mut mount) {
                    Some(mount) => return mount.unmounted().await,
                    None => reactor::yield_now().await,
                }
            }
        };
        let config = reactor::Config { entries: 64, ..reactor::Config::default() };
        reactor::run(config, serve).expect("a reactor")
    });
    is_up.recv().expect("an answer").expect("mounted");
    Some(Mounted { dir, tasks: Some(tasks), thread: Some(thread) })
}

async fn make_dirs(lab: &Lab, path: &str) {
    use client::service::{Create, FileKind, FileService, ROOT_INO};
    let mut at = ROOT_INO;
    for name in path.split('/').filter(|n| !n.is_empty()) {
        let create = Create {
            mode: FileKind::Directory as u32 | 0o755,
            rdev: 0,
            target: b"",
            open: None,
            exclusive: true,
            tmpfile: false,
        };
        let made = lab.memory.create(&client::Ctx::default(), at, name.as_bytes(), create).await;
        at = made.expect("made").entry.attr.ino();
    }
}

impl Mounted {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs something on the serving thread and waits for its result.
    pub fn on_server<T, F>(&self, act: impl FnOnce(Rc<Lab>, Rc<Mount>) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (send, receive) = mpsc::channel();
        let task: Task = Box::new(move |lab, mount| {
            let future = act(lab, mount);
            Box::pin(async move {
                let value = future.await;
                send.send(value).expect("somebody waits");
            })
        });
        self.tasks.as_ref().expect("running").send_blocking(task).ok().expect("running");
        receive.recv_timeout(Duration::from_secs(60)).expect("the serving thread answers")
    }

    /// Looks at the service.
    pub fn lab<T: Send + 'static>(&self, act: impl FnOnce(&Lab) -> T + Send + 'static) -> T {
        self.on_server(move |lab, _| async move { act(&lab) })
    }
    pub fn calls(&self, name: &'static str) -> u64 {
        self.lab(move |lab| lab.calls_of(name))
    }
    pub fn stats(&self) -> MountStats {
        self.on_server(|_, mount| async move { mount.stats() })
    }
    /// Waits for something to become true on the server.
    pub fn until(&self, what: &str, mut is: impl FnMut(&Self) -> bool) {
        for _ in 0..2000 {
            if is(self) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("never came true: {what}");
    }

    /// Unmounts and gives the serving thread's outcome.
    pub fn finish(mut self) -> Result<(), client_fuse::Error> {
        client_fuse::unmount(self.dir.path(), Unmount::Plain).expect("unmounted");
        self.tasks = None;
        let thread = self.thread.take().expect("running");
        thread.join().expect("the serving thread ends well")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A failed test may have left files open.
            let _ = client_fuse::unmount(self.dir.path(), Unmount::Lazy);
            self.tasks = None;
            if !std::thread::panicking() {
                thread.join().expect("the serving thread ends well").expect("unmounted");
            }
        }
    }
}
