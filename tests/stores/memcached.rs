//! memcached: several servers, found by name; and whoever answers in its place.

use super::*;

mod server {
    use super::*;

    #[tokio::test]
    async fn keeps_values_for_their_time() {
        let server = Memcached::start().await;
        let store = memcached(&[&server]);
        assert_eq!(store.get("app:k").await.unwrap(), None);
        store.set("app:k", bytes("v\r\nEND\r\n\0"), MINUTE).await.unwrap();
        assert_eq!(store.get("app:k").await.unwrap().unwrap(), "v\r\nEND\r\n\0");
        // Told as so many seconds, it would end in 1970.
        store.set("app:k", bytes("long"), Duration::from_secs(31 * 86_400)).await.unwrap();
        assert_eq!(store.get("app:k").await.unwrap().unwrap(), "long");
        store.set("app:k", bytes("short"), Duration::from_millis(1)).await.unwrap();
        eventually("the end of a life", async || {
            ensure(store.get("app:k").await == Ok(None), || "it is there".to_owned())
        })
        .await;
    }

    #[tokio::test]
    async fn keys_and_values_are_bounded() {
        let server = Memcached::start().await;
        let store = memcached(&[&server]);
        let most = Bytes::from(vec![b'x'; MAX_VALUE]);
        let longest = "k".repeat(250);
        store.set(&longest, most.clone(), MINUTE).await.unwrap();
        assert_eq!(store.get(&longest).await.unwrap(), Some(most));
        for wrong in [Bytes::new(), Bytes::from(vec![b'x'; MAX_VALUE + 1])] {
            assert!(matches!(store.set("app:k", wrong, MINUTE).await, Err(StoreError::Invalid(_))));
        }
        for key in ["", "a b", "a\r\nflush_all", "a\0", "\u{7f}", &"k".repeat(251)] {
            assert!(matches!(store.get(key).await, Err(StoreError::Invalid(_))), "{key:?}");
            assert!(matches!(store.set(key, bytes("v"), MINUTE).await, Err(StoreError::Invalid(_))), "{key:?}");
        }
        assert_eq!(server.say("get a").await, ["END"]);
        server.say(&format!("set app:long 0 0 9000\r\n{}", "x".repeat(9000))).await;
        assert!(matches!(store.get("app:long").await, Err(StoreError::Protocol(_))));
    }

    #[tokio::test]
    async fn one_server_killed_only_its_keys_miss_and_it_comes_back() {
        let (mut one, other) = (Memcached::start().await, Memcached::start().await);
        let store = memcached(&[&one, &other]);
        let keys = named(&store, 100).await;
        let mut of_one = BTreeSet::new();
        for key in &keys {
            if one.say(&format!("get {key}")).await.len() > 1 {
                of_one.insert(key);
            }
        }
        assert!((20..80).contains(&of_one.len()), "{of_one:?}");

        one.kill().await;
        for key in &keys {
            let got = store.get(key).await;
            if of_one.contains(key) {
                assert!(matches!(got, Err(StoreError::Unavailable(_) | StoreError::LeftAlone)), "{got:?}");
            } else {
                assert_eq!(got.unwrap(), Some(bytes(key)));
            }
        }
        assert_eq!(store.get(of_one.first().unwrap()).await, Err(StoreError::LeftAlone));

        one.restart().await;
        for key in of_one {
            assert_eq!(gets(&store, key).await, None);
            works("with both servers", &store, key).await;
        }
    }

    #[tokio::test]
    async fn stopped_it_times_out_and_mixes_nothing_up() {
        let server = Memcached::start().await;
        let store = Client::new([server.address()]).response_timeout(Duration::from_millis(40));
        no_answer_meets_anothers_question(&store, async || server.pause().await, async || server.resume().await).await;
    }

    #[tokio::test]
    async fn connections_are_kept_and_their_number_is_bounded() {
        let server = Memcached::start().await;
        let relay = Relay::to(server.port()).await;
        let store = Client::new([relay.address.to_string()]).response_timeout(PATIENT);
        works("at first", &store, "app:k").await;
        for _ in 0..20 {
            store.get("app:k").await.unwrap();
        }
        assert_eq!(relay.connections.load(Ordering::Relaxed), 1);
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..500 {
            let store = store.clone();
            calls.spawn(async move { store.get("app:k").await.unwrap() });
        }
        while let Some(value) = calls.join_next().await {
            assert_eq!(value.unwrap(), Some(bytes("works")));
        }
        assert!(relay.connections.load(Ordering::Relaxed) <= 32);
    }

    #[tokio::test]
    async fn names_are_looked_up_again_and_what_was_found_stays_while_they_cannot_be() {
        let (one, other) = (Memcached::start().await, Memcached::start().await);
        let names = Names::default();
        let store = Client::new(["cache.test:11211"])
            .resolver(names.clone())
            .refresh_every(Duration::from_millis(1))
            .response_timeout(PATIENT);
        names.answer(Err("no such host"));
        let error = store.get("app:k").await.unwrap_err();
        assert_eq!(error.to_string(), "unavailable: cache.test:11211: no such host");

        names.answer(Ok(vec![one.address()]));
        let keys = named(&store, 40).await;
        // Each address is a server of its own, in whichever order they come.
        names.answer(Ok(vec![other.address(), one.address(), other.address()]));
        eventually("keys on the new server", async || {
            for key in &keys {
                store.set(key, bytes(key), MINUTE).await.map_err(|error| error.to_string())?;
            }
            let stats = other.say("stats").await;
            ensure(!stats.contains(&"STAT curr_items 0".to_owned()), || format!("{stats:?}"))
        })
        .await;
        // Some may have been written while only the first was known.
        named(&store, 40).await;
        names.answer(Err("no answer"));
        names.asked_again(&store).await;
        for key in &keys {
            assert_eq!(gets(&store, key).await, Some(bytes(key)));
        }
        // Without the other again: what it had is no longer found, and everything works.
        names.answer(Ok(vec![one.address()]));
        names.asked_again(&store).await;
        drop(other);
        for key in &keys {
            works("without the other", &store, key).await;
        }
    }
}

mod lies {
    use super::*;

    /// What a server says to `get app:k`, one connection after the other, and what becomes of it. The last word is always honest.
    async fn said(answers: &[&str]) -> Vec<Result<Option<Bytes>, StoreError>> {
        let mut script: Vec<_> = answers.iter().map(|answer| (*answer).to_owned()).collect();
        script.push("VALUE app:k 0 6\r\nhonest\r\nEND\r\n".to_owned());
        let liar = Liar::start(script).await;
        // A client for each: three failures in a row, and a server is left alone.
        let mut results = Vec::new();
        for _ in 0..=answers.len() {
            let store = Client::new([liar.to_string()]).response_timeout(PATIENT);
            results.push(within("an answer", store.get("app:k")).await);
        }
        results
    }

    #[tokio::test]
    async fn is_not_believed() {
        let endless = "x".repeat(100_000);
        let results = said(&[
            "VALUE app:other 0 1\r\nx\r\nEND\r\n",
            "VALUE app:k 0 8193\r\n",
            "VALUE app:k 0 99999999999999999999\r\n",
            "VALUE app:k 0 -1\r\n",
            "VALUE app:k 0\r\n",
            "VALUE app:k 0 1\r\nxx\r\nEND\r\n",
            "VALUE app:k 0 1\r\nx\r\nVALUE app:k 0 1\r\nx\r\nEND\r\n",
            "\u{0}\u{1}\u{2}\r\n",
            "END\n",
            "STORED\r\n",
            "ERROR\r\n",
            "CLIENT_ERROR line too long\r\n",
            &endless,
            &format!("VALUE app:k {endless}"),
        ])
        .await;
        let (honest, lies) = results.split_last().unwrap();
        for (index, lie) in lies.iter().enumerate() {
            assert!(matches!(lie, Err(StoreError::Protocol(_))), "{index}: {lie:?}");
        }
        assert_eq!(*honest, Ok(Some(bytes("honest"))));
    }

    #[tokio::test]
    async fn or_dies_mid_word_is_unavailable() {
        let results =
            said(&["", "VAL", "VALUE app:k 0 5\r\nab", "VALUE app:k 0 1\r\nx\r\n", "SERVER_ERROR hush\r\n"]).await;
        let (honest, cuts) = results.split_last().unwrap();
        for cut in cuts {
            assert!(matches!(cut, Err(StoreError::Unavailable(_) | StoreError::Protocol(_))), "{cut:?}");
            assert!(!format!("{cut:?}").contains("hush"));
        }
        assert_eq!(*honest, Ok(Some(bytes("honest"))));
    }

    /// The second answer came unasked with the first: it must not become the answer to the next question.
    #[tokio::test]
    async fn or_talks_unasked_is_not_listened_to() {
        let unasked = "VALUE app:k 0 5\r\nfirst\r\nEND\r\nVALUE app:k 0 7\r\nunasked\r\nEND\r\n".to_owned();
        let liar = Liar::start(vec![unasked, "VALUE app:k 0 6\r\nsecond\r\nEND\r\n".to_owned()]).await;
        let store = Client::new([liar.to_string()]).response_timeout(PATIENT);
        assert_eq!(store.get("app:k").await, Ok(Some(bytes("first"))));
        assert_eq!(store.get("app:k").await, Ok(Some(bytes("second"))));
    }
}

/// Says the next thing on each new connection, once it was asked something, and closes it when the client has had its say.
struct Liar;

impl Liar {
    async fn start(script: Vec<String>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            for answer in script {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut asked = [0; 1024];
                    if stream.read(&mut asked).await.is_ok_and(|read| read > 0) {
                        let _ = stream.write_all(answer.as_bytes()).await;
                        let _ = stream.shutdown().await;
                        while stream.read(&mut asked).await.is_ok_and(|read| read > 0) {}
                    }
                });
            }
        });
        address
    }
}

/// A resolver that answers what it is told.
#[derive(Clone, Default)]
struct Names(Arc<NamesState>);

#[derive(Default)]
struct NamesState {
    answer: Mutex<Option<Result<Vec<String>, &'static str>>>,
    asked: AtomicUsize,
}

impl Names {
    fn answer(&self, answer: Result<Vec<String>, &'static str>) {
        *self.0.answer.lock().unwrap() = Some(answer);
    }

    /// Makes `store` look up its names, by asking it for something, and waits until it has twice: the first may have been under way.
    async fn asked_again(&self, store: &Client) {
        let before = self.0.asked.load(Ordering::Relaxed);
        eventually("a lookup", async || {
            let _ = store.get("app:none").await;
            let asked = self.0.asked.load(Ordering::Relaxed);
            ensure(asked >= before + 2, || format!("asked {asked} times"))
        })
        .await;
    }
}

impl Resolve for Names {
    fn resolve<'a>(
        &'a self,
        server: &'a str,
    ) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'a>> {
        assert_eq!(server, "cache.test:11211");
        let answer = self.0.answer.lock().unwrap().clone().unwrap();
        self.0.asked.fetch_add(1, Ordering::Relaxed);
        let parsed = |addresses: Vec<String>| addresses.iter().map(|address| address.parse().unwrap()).collect();
        Box::pin(async move { answer.map(parsed).map_err(io::Error::other) })
    }
}
