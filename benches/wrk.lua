-- The last line of wrk's output: its findings in a form that a program reads, with a percentile that wrk does not print.
function done(summary, latency, requests)
   local errors = summary.errors
   local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
   local form = '{"requests":%d,"seconds":%.6f,"p50_us":%d,"p99_us":%d,"p999_us":%d,"errors":%d}\n'
   local p50, p99, p999 = latency:percentile(50), latency:percentile(99), latency:percentile(99.9)
   io.write(form:format(summary.requests, summary.duration / 1e6, p50, p99, p999, failed))
end
