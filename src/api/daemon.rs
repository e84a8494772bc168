//! `kilnd`: listens, serves, stops when told.
//!
//! ```text
//!   control plane ─▶ supervisor ─▶ API ─▶ TCP on loopback ┐
//!                                         Unix socket     ┴─▶ until SIGTERM or SIGINT
//! ```
//! The supervisor holds the lock of the state directory: two may not serve one, and `kiln` beside a
//! running `kilnd` may use it as ever. The machines of instances outlive this process.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use kiln_controlplane::credentials::AssumeRole;
use kiln_controlplane::instances::{ControlPlane, Settings, Supervisor, SupervisorError};
use kiln_controlplane::network::HostFabric;
use kiln_controlplane::state::StateDir;
use kiln_controlplane::state::dir::{self, ENDPOINT, SOCKET};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use crate::server::{Api, local_router, router};

/// How long clients that are being served may hold up the end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves instances, images and networks of this host as an EC2-compatible API.
#[derive(Debug, Parser)]
#[command(name = "kilnd", version)]
struct Arguments {
    /// Directory with all state
    #[arg(long, env = "KILN_STATE_DIR", default_value = dir::DEFAULT)]
    state_dir: PathBuf,
    /// Address to listen on; port 0 takes any
    #[arg(long, env = "KILN_LISTEN", default_value = "127.0.0.1:4580")]
    listen: SocketAddr,
    /// Allow an address that others can reach: what is said there is signed, but not encrypted
    #[arg(long)]
    allow_remote: bool,
    /// Start the instances again that ran when the host went down; without, they are stopped
    #[arg(long, env = "KILN_RESTART_AFTER_BOOT")]
    restart_after_boot: bool,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0} can be reached by others, who could listen in: say --allow-remote if that is meant")]
    Remote(SocketAddr),
    #[error("cannot {action}: {source}")]
    Io {
        action: String,
        #[source]
        source: io::Error,
    },
    #[error("{0}")]
    State(#[from] kiln_controlplane::state::StoreError),
    #[error("{0}")]
    Instances(#[from] SupervisorError),
    #[error("{0}")]
    Keys(#[from] kiln_controlplane::identity::KeyError),
}

fn io_error(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let action = action.into();
    move |source| Error::Io { action, source }
}

/// Runs the program with these arguments, the first of which is its name. `sts`: what assumes roles elsewhere.
pub fn main(arguments: impl IntoIterator<Item = OsString>, sts: Arc<dyn AssumeRole>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(e) => {
            // Nobody left to read the help is no failure.
            let _ = e.print();
            return if e.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(false)
        .with_writer(io::stderr)
        .init();
    match serve(&arguments, sts) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut next = std::error::Error::source(&error).and_then(|e| e.source());
            while let Some(cause) = next {
                text.push_str(&format!(": {cause}"));
                next = cause.source();
            }
            eprintln!("kilnd: {}", text.replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &Arguments, sts: Arc<dyn AssumeRole>) -> Result<(), Error> {
    if !arguments.listen.ip().is_loopback() && !arguments.allow_remote {
        return Err(Error::Remote(arguments.listen));
    }
    let dir = StateDir::create(&arguments.state_dir)?;
    let plane = ControlPlane::open(dir.root(), Arc::new(HostFabric::default()), sts)?;
    let settings = Settings { restart_after_boot: arguments.restart_after_boot, ..Settings::default() };
    let api = Arc::new(Api::new(Supervisor::open(plane, settings)?)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(io_error("start the event loop"))?;
    let result = runtime.block_on(listen(arguments, &dir, api));
    // Actions in flight end by themselves; none waits for anything but the host.
    drop(runtime);
    let _ = std::fs::remove_file(dir.run().join(ENDPOINT));
    result
}

async fn listen(arguments: &Arguments, dir: &StateDir, api: Arc<Api>) -> Result<(), Error> {
    let tcp = TcpListener::bind(arguments.listen).await;
    let tcp = tcp.map_err(io_error(format!("listen on {}", arguments.listen)))?;
    let address = tcp.local_addr().map_err(io_error("tell the address"))?;
    let path = dir.run().join(SOCKET);
    let unix = unix_listener(&path).map_err(io_error(format!("listen on {}", path.display())))?;
    // Found by `kiln env`; the lock says that it is true.
    std::fs::write(dir.run().join(ENDPOINT), format!("http://{address}\n"))
        .map_err(io_error("note the address"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(io_error("wait for signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io_error("wait for signals"))?;
    let (stop, stopped) = watch::channel(false);
    let until = |mut stopped: watch::Receiver<bool>| async move {
        // An error means that the sender has gone, which is an end too.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    tracing::info!(%address, socket = %path.display(), state = %dir.root().display(), "serving");
    let remote = router(Arc::clone(&api)).into_make_service_with_connect_info::<SocketAddr>();
    let tcp = axum::serve(tcp, remote).with_graceful_shutdown(until(stopped.clone()));
    let unix = axum::serve(unix, local_router(api, stopped.clone())).with_graceful_shutdown(until(stopped));
    let wait = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        // Both servers have gone: nobody to tell.
        let _ = stop.send(true);
    };
    let served = async { tokio::try_join!(tcp, unix) };
    let patience = async {
        wait.await;
        // Whoever has not finished asking by then never will.
        tokio::time::sleep(PATIENCE).await;
    };
    let result = tokio::select! {
        result = served => result.map(|_| ()),
        () = patience => Ok(()),
    };
    let _ = std::fs::remove_file(&path);
    result.map_err(io_error("serve"))
}

/// Listens where a killed predecessor may have left its socket.
fn unix_listener(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // The directory is its owner's alone, so nobody else reaches the socket.
    UnixListener::bind(path)
}
