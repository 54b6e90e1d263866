from tests.test_failover import *
async def test_dbg(gateway_of, clock):
    quick = {**HTTP, "window": 4, "breaker_failures": 2}
    gateway, (a, b) = await serve(gateway_of, {"a": quick, "b": {**MOCK, "priority": 1}})
    orig = gateway.allotter.grants
    def grants(shard, fresh, now_s):
        r = orig(shard, fresh, now_s)
        print(shard, fresh, r, gateway.allotter.links["a"].free(now_s))
        return r
    gateway.allotter.grants = grants
    client = await add_client(gateway)
    silent = [await submitted(gateway, client) for _ in range(2)]
    await flushed(gateway)
    assert 0
