import io.spiffe.bundle.jwtbundle.JwtBundle;
import io.spiffe.svid.jwtsvid.JwtSvid;
import io.spiffe.svid.x509svid.X509Svid;
import io.spiffe.workloadapi.DefaultJwtSource;
import io.spiffe.workloadapi.DefaultWorkloadApiClient;
import io.spiffe.workloadapi.JwtSource;
import io.spiffe.workloadapi.Watcher;
import io.spiffe.workloadapi.WorkloadApiClient;
import io.spiffe.workloadapi.X509Context;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * A workload in Java, over the unchanged java-spiffe library.
 * {@code x509 | jwt AUDIENCE | validate TOKEN AUDIENCE | watch COUNT}; the address of the Workload
 * API is taken from SPIFFE_ENDPOINT_SOCKET.
 */
public final class Client {
    public static void main(String[] args) throws Exception {
        switch (args[0]) {
            case "x509" -> x509();
            case "jwt" -> jwt(args[1]);
            case "validate" -> validate(args[1], args[2]);
            case "watch" -> watch(Integer.parseInt(args[1]));
            default -> throw new IllegalArgumentException("unknown command " + args[0]);
        }
        System.out.println("done");
        System.exit(0);
    }

    private static void x509() throws Exception {
        try (WorkloadApiClient client = DefaultWorkloadApiClient.newClient()) {
            for (X509Svid svid : client.fetchX509Context().getX509Svids()) {
                System.out.println("id " + svid.getSpiffeId());
            }
        }
    }

    private static void jwt(String audience) throws Exception {
        try (JwtSource source = DefaultJwtSource.newSource()) {
            JwtSvid svid = source.fetchJwtSvid(audience);
            JwtBundle bundle = source.getBundleForTrustDomain(svid.getSpiffeId().getTrustDomain());
            JwtSvid checked = JwtSvid.parseAndValidate(svid.getToken(), bundle, Set.of(audience));
            System.out.println("token " + svid.getToken());
            System.out.println("id " + checked.getSpiffeId());
            validate(svid.getToken(), audience);
        }
    }

    private static void validate(String token, String audience) throws Exception {
        try (WorkloadApiClient client = DefaultWorkloadApiClient.newClient()) {
            System.out.println("validated " + client.validateJwtSvid(token, audience).getSpiffeId());
        }
    }

    private static void watch(int count) throws Exception {
        CountDownLatch done = new CountDownLatch(count);
        AtomicInteger seen = new AtomicInteger();
        try (WorkloadApiClient client = DefaultWorkloadApiClient.newClient()) {
            client.watchX509Context(new Watcher<>() {
                @Override
                public void onUpdate(X509Context update) {
                    X509Svid svid = update.getDefaultSvid();
                    System.out.println("update " + seen.incrementAndGet() + " " + svid.getSpiffeId() + " "
                            + svid.getLeaf().getSerialNumber().toString(16));
                    done.countDown();
                }

                @Override
                public void onError(Throwable error) {
                    System.out.println("watch error: " + error);
                }
            });
            if (!done.await(180, TimeUnit.SECONDS)) {
                throw new IllegalStateException("saw " + seen + " updates of " + count);
            }
        }
    }
}
