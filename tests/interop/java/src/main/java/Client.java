import io.grpc.Status;
import io.spiffe.svid.jwtsvid.JwtSvid;
import io.spiffe.svid.x509svid.X509Svid;
import io.spiffe.workloadapi.DefaultWorkloadApiClient;
import io.spiffe.workloadapi.Watcher;
import io.spiffe.workloadapi.WorkloadApiClient;
import io.spiffe.workloadapi.X509Context;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.List;
import java.util.Set;
import java.util.logging.Handler;
import java.util.logging.LogRecord;
import java.util.logging.Logger;
import java.util.stream.Collectors;

/**
 * A workload in Java, over the unchanged java-spiffe library. It answers the commands that
 * ../../../../session.rs describes; the address of the Workload API is taken from SPIFFE_ENDPOINT_SOCKET.
 */
public final class Client {
    /** Where the library says why a stream ended; nobody else is told as long as it tries again. */
    private static final Logger STREAMS = Logger.getLogger("io.spiffe.workloadapi.StreamObservers");

    private final WorkloadApiClient client;

    private Client(WorkloadApiClient client) {
        this.client = client;
    }

    public static void main(String[] args) throws Exception {
        STREAMS.setUseParentHandlers(false);
        STREAMS.addHandler(new StreamEnds());
        Client self = new Client(DefaultWorkloadApiClient.newClient());
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            String[] words = line.trim().split(" +");
            String fields;
            try {
                fields = self.answer(words);
            } catch (Exception error) {
                fields = ",\"error\":{" + failure(error) + "}";
            }
            tell("\"reply\":" + quoted(words[0]) + fields);
        }
        System.exit(0);
    }

    private String answer(String[] words) throws Exception {
        switch (words[0]) {
            case "x509":
                return summary(client.fetchX509Context());
            case "watch":
                client.watchX509Context(new Watch());
                return "";
            case "jwt":
                JwtSvid svid = client.fetchJwtSvid(words[1]);
                return subject(svid) + ",\"token\":" + quoted(svid.getToken());
            case "verify":
                return subject(JwtSvid.parseAndValidate(words[1], client.fetchJwtBundles(), Set.of(words[2])));
            case "validate":
                return subject(client.validateJwtSvid(words[1], words[2]));
            default:
                throw new IllegalArgumentException("unknown command " + words[0]);
        }
    }

    private static String summary(X509Context context) throws Exception {
        X509Svid first = context.getDefaultSvid();
        var own = context.getX509BundleSet().getBundleForTrustDomain(first.getSpiffeId().getTrustDomain());
        return ids(context.getX509Svids().stream().map(svid -> svid.getSpiffeId().toString()).toList())
                + ",\"serial\":" + quoted(first.getLeaf().getSerialNumber().toString(16))
                + ",\"authorities\":" + own.getX509Authorities().size();
    }

    private static String subject(JwtSvid svid) {
        return ids(List.of(svid.getSpiffeId().toString()));
    }

    private static String ids(List<String> ids) {
        return ",\"ids\":[" + ids.stream().map(Client::quoted).collect(Collectors.joining(",")) + "]";
    }

    /** What the server said, if it was the server; else what the library says. */
    private static String failure(Throwable error) {
        Status status = Status.fromThrowable(error);
        boolean isLocal = status.getCode() == Status.Code.UNKNOWN && status.getDescription() == null;
        String message = isLocal ? error.toString() : status.getDescription();
        return "\"code\":" + quoted(isLocal ? "" : status.getCode().name()) + ",\"message\":" + quoted(message);
    }

    private static String quoted(String text) {
        StringBuilder json = new StringBuilder("\"");
        for (char c : String.valueOf(text).toCharArray()) {
            if (c == '"' || c == '\\' || c < ' ') {
                json.append(String.format("\\u%04x", (int) c));
            } else {
                json.append(c);
            }
        }
        return json.append('"').toString();
    }

    private static synchronized void tell(String fields) {
        System.out.println("{" + fields + "}");
        System.out.flush();
    }

    private static final class Watch implements Watcher<X509Context> {
        @Override
        public void onUpdate(X509Context update) {
            try {
                tell("\"event\":\"update\"" + summary(update));
            } catch (Exception error) {
                onError(error);
            }
        }

        @Override
        public void onError(Throwable error) {
            tell("\"event\":\"given up\"," + failure(error));
        }
    }

    private static final class StreamEnds extends Handler {
        @Override
        public void publish(LogRecord entry) {
            if (entry.getThrown() != null) {
                tell("\"event\":\"ended\"," + failure(entry.getThrown()));
            }
        }

        @Override
        public void flush() {}

        @Override
        public void close() {}
    }
}
