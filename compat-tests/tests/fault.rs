//! A short run of crash cycles; `make sim` runs a long one.

use oxetcd_compat_tests::{
    fault::{FLAGS, FaultRun},
    server::{Kind, Server},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_lose_nothing_that_was_acknowledged() {
    let server = Server::start(Kind::Oxetcd, &FLAGS).unwrap().unwrap();
    let mut run = FaultRun::new(server, 7);
    for _ in 0..20 {
        run.cycle().await.unwrap();
    }
    let (acknowledged, _) = run.counts();
    assert!(0 < acknowledged, "the writers were never answered");
}
