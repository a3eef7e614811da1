//! Official etcd, built from its Go modules.
//!
//! Decides where its binaries are: in the directory named by `OXETCD_OFFICIAL_BIN`, or built once
//! into `target/official`. Versions stand in `compat-tests/go/go.mod`. Where Go is missing, checks
//! that need them are skipped with a sentence; with `CI` set that is a failure. Called by the
//! benchmark and by the compatibility tests.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context, bail, ensure};

/// The official programs that compatibility checks use, with the package of each.
const PROGRAMS: [(&str, &str); 3] = [
    ("etcd", "go.etcd.io/etcd/server/v3"),
    ("etcdctl", "go.etcd.io/etcd/etcdctl/v3"),
    ("etcdutl", "go.etcd.io/etcd/etcdutl/v3"),
];

/// The largest user of etcd, which only the Kubernetes suite needs.
const KUBE_APISERVER: (&str, &str) = ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver");

/// etcd's load generator, which only the benchmark needs.
const BENCHMARK: (&str, &str) = ("benchmark", "go.etcd.io/etcd/v3/tools/benchmark");

/// The directory of the Go module that names official versions.
#[must_use]
pub fn go_module_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../compat-tests/go")
}

/// The workspace's `target` directory.
#[must_use]
pub fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from)
}

/// The directory with `etcd`, `etcdctl` and `etcdutl`, building them if need be.
///
/// # Errors
/// If Go is there and the build fails, or if Go is missing and `CI` is set.
pub fn bin_dir() -> anyhow::Result<Option<PathBuf>> {
    static DIR: OnceLock<Result<Option<PathBuf>, String>> = OnceLock::new();
    DIR.get_or_init(|| find_or_build(&PROGRAMS).map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(anyhow::Error::msg)
}

/// The load generator; `None` where Go is missing.
///
/// # Errors
/// If Go is there and the build fails.
pub fn benchmark_tool() -> anyhow::Result<Option<PathBuf>> {
    Ok(find_or_build(&[BENCHMARK])?.map(|dir| dir.join(BENCHMARK.0)))
}

/// Kubernetes' API server, built if need be, which takes some minutes; its version stands in
/// `compat-tests/go/kubernetes/go.mod`. `None` where Go is missing.
///
/// # Errors
/// As [`bin_dir`].
pub fn kube_apiserver() -> anyhow::Result<Option<PathBuf>> {
    let Some(dir) = find_or_build(&[])? else { return Ok(None) };
    let (name, package) = KUBE_APISERVER;
    build(&dir, &go_module_dir().join("kubernetes"), name, package)?;
    Ok(Some(dir.join(name)))
}

fn find_or_build(programs: &[(&str, &str)]) -> anyhow::Result<Option<PathBuf>> {
    if let Some(dir) = env::var_os("OXETCD_OFFICIAL_BIN") {
        return Ok(Some(PathBuf::from(dir)));
    }
    if Command::new("go").arg("version").output().is_err() {
        ensure!(env::var_os("CI").is_none(), "Go is missing, and CI must not skip these checks");
        return Ok(None);
    }
    let dir = target_dir().join("official");
    fs::create_dir_all(&dir)?;
    // Tests of several processes ask at once; one builds, the rest wait.
    let lock = File::create(dir.join("lock"))?;
    lock.lock().context("cannot lock the cache of official binaries")?;
    for (name, package) in programs {
        build(&dir, &go_module_dir(), name, package)?;
    }
    Ok(Some(dir))
}

fn build(dir: &Path, module: &Path, name: &str, package: &str) -> anyhow::Result<()> {
    let output = dir.join(name);
    if output.exists() {
        return Ok(());
    }
    let unfinished = dir.join(format!("{name}.unfinished"));
    let status = Command::new("go")
        .args(["build", "-trimpath", "-o"])
        .arg(&unfinished)
        .arg(package)
        .current_dir(module)
        .status()
        .context("cannot run go")?;
    if !status.success() {
        bail!("go could not build {package}");
    }
    fs::rename(&unfinished, &output)?;
    Ok(())
}

/// The official program `name`; `None`, after a sentence on standard error, where Go is missing.
///
/// # Errors
/// As [`bin_dir`].
pub fn program(name: &str) -> anyhow::Result<Option<PathBuf>> {
    let dir = bin_dir()?;
    #[expect(clippy::print_stderr, reason = "the reader of a test run must see what is skipped")]
    if dir.is_none() {
        eprintln!("SKIPPED: needs official {name}, and Go is not installed");
    }
    Ok(dir.map(|dir| dir.join(name)))
}
