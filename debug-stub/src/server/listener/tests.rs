use super::*;

fn unix(path: &Path) -> ListenAddress {
    ListenAddress::Unix(path.to_owned())
}

#[test]
fn a_unix_socket_is_its_owners_alone_and_goes_with_the_listener() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("gdb");
    let listener = Listener::bind(&unix(&path), false).unwrap();
    let file = fs::symlink_metadata(&path).unwrap();
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_socket_that_another_listens_at_is_in_use_and_stays_theirs() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("gdb");
    let first = Listener::bind(&unix(&path), false).unwrap();
    let error = Listener::bind(&unix(&path), false).unwrap_err();
    assert!(matches!(error, ListenError::InUse(_)), "{error}");
    // The question did not connect.
    assert_eq!(first.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_socket_file_left_behind_is_replaced_and_another_file_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("gdb");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "std leaves it");
    Listener::bind(&unix(&path), false).unwrap();

    fs::write(&path, "precious").unwrap();
    let error = Listener::bind(&unix(&path), false).unwrap_err();
    assert!(matches!(error, ListenError::NotASocket(_)), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn another_file_at_the_path_is_not_unlinked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("gdb");
    let listener = Listener::bind(&unix(&path), false).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "other").unwrap();
    drop(listener);
    assert!(path.exists());
}

#[test]
fn a_path_that_does_not_fit_is_refused() {
    let error = Listener::bind(&unix(Path::new(&"x".repeat(200))), false).unwrap_err();
    assert!(matches!(error, ListenError::PathTooLong { .. }), "{error}");
}

#[test]
fn port_0_is_reported_as_the_port_it_became() {
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap(), false).unwrap();
    let ListenAddress::Tcp(address) = listener.address() else {
        panic!("no TCP");
    };
    assert_ne!(address.port(), 0);
    let again = Listener::bind(&ListenAddress::Tcp(*address), false).unwrap_err();
    assert!(matches!(again, ListenError::InUse(_)), "{again}");
}

#[test]
fn addresses_beyond_this_machine_need_leave() {
    for remote in ["tcp:0.0.0.0:0", "tcp:[::]:0"] {
        let address = remote.parse().unwrap();
        let error = Listener::bind(&address, false).unwrap_err();
        assert!(matches!(error, ListenError::NotLoopback(_)), "{error}");
    }
    Listener::bind(&"tcp:0.0.0.0:0".parse().unwrap(), true).unwrap();
}

#[test]
fn addresses_are_written_as_they_are_read() {
    for text in ["tcp:127.0.0.1:1234", "tcp:[::1]:0", "unix:/run/a b"] {
        let address: ListenAddress = text.parse().unwrap();
        assert_eq!(address.to_string(), text);
    }
    assert_eq!(
        "tcp:localhost:5"
            .parse::<ListenAddress>()
            .unwrap()
            .to_string(),
        "tcp:127.0.0.1:5"
    );
    for text in [
        "",
        "unix:",
        "tcp:",
        "tcp:1234",
        "tcp:example.org:1",
        "vsock:2",
    ] {
        assert!(text.parse::<ListenAddress>().is_err(), "{text}");
    }
}
