// The SMSC and the client of node-smpp; what they tell is described in __init__.py.
'use strict';

const fs = require('node:fs');
const smpp = require('smpp');

const mode = process.argv[2];
const options = JSON.parse(process.argv[3]);

const FIELDS = [
  'service_type', 'source_addr_ton', 'source_addr_npi', 'source_addr', 'dest_addr_ton',
  'dest_addr_npi', 'destination_addr', 'esm_class', 'protocol_id', 'priority_flag',
  'validity_period', 'data_coding', 'registered_delivery', 'sar_msg_ref_num',
  'sar_total_segments', 'sar_segment_seqnum', 'receipted_message_id', 'message_state',
];

function tell(event, fields = {}) {
  process.stdout.write(JSON.stringify({ event, ...fields }) + '\n');
}

// Text as node-smpp decoded it; a user data header as hex.
function content(pdu) {
  const told = {};
  for (const name of FIELDS) {
    if (pdu[name] !== undefined) told[name] = pdu[name];
  }
  const given = pdu.message_payload ?? pdu.short_message;
  told.text = given?.message ?? given;
  if (Buffer.isBuffer(told.text)) told.text = told.text.toString('hex');
  told.headers = (given?.udh ?? []).map((header) => header.toString('hex'));
  return told;
}

function report(session, pdu, id) {
  session.deliver_sm({
    source_addr: pdu.destination_addr,
    source_addr_ton: pdu.dest_addr_ton,
    source_addr_npi: pdu.dest_addr_npi,
    destination_addr: pdu.source_addr,
    dest_addr_ton: pdu.source_addr_ton,
    dest_addr_npi: pdu.source_addr_npi,
    esm_class: smpp.ESM_CLASS.MC_DELIVERY_RECEIPT,
    receipted_message_id: id,
    message_state: 2,
    short_message: `id:${id} sub:001 dlvrd:001 submit date:2611231200 ` +
      'done date:2611231201 stat:DELIVRD err:000 text:hello',
  }, (answer) => tell('receipt', { message_id: id, command_status: answer.command_status }));
}

function smsc() {
  let throttle = options.throttle ?? 0;
  let number = 0;
  const receivers = [];
  const tls = options.key
    ? { key: fs.readFileSync(options.key), cert: fs.readFileSync(options.cert) }
    : {};
  const server = smpp.createServer(tls, (session) => {
    session.socket.setNoDelay(true);
    session.on('error', (error) => tell('error', { error: String(error) }));
    for (const kind of ['bind_transmitter', 'bind_receiver', 'bind_transceiver']) {
      session.on(kind, (pdu) => {
        if (options.password !== undefined && options.password !== pdu.password) {
          session.send(pdu.response({ command_status: smpp.ESME_RINVPASWD }));
          session.close();
          return;
        }
        session.send(pdu.response({ system_id: 'node-smpp' }));
        session.receives = kind !== 'bind_transmitter';
        if (session.receives) receivers.push(session);
        tell('bound', { system_id: pdu.system_id, receives: session.receives });
      });
    }
    session.on('enquire_link', (pdu) => {
      session.send(pdu.response());
      tell('enquire_link');
    });
    session.on('unbind', (pdu) => {
      session.send(pdu.response());
      session.close();
    });
    session.on('close', () => {
      if (receivers.includes(session)) receivers.splice(receivers.indexOf(session), 1);
      tell('unbound');
    });
    session.on('cancel_sm', (pdu) => {
      session.send(pdu.response());
      tell('cancel', { message_id: pdu.message_id });
    });
    session.on('submit_sm', (pdu) => {
      if (throttle > 0) {
        throttle -= 1;
        session.send(pdu.response({ command_status: smpp.ESME_RTHROTTLED }));
        return;
      }
      number += 1;
      const id = String(1000000000 + number);
      tell('submit', { message_id: id, ...content(pdu) });
      if (number === options.close_after) {
        session.destroy();
        return;
      }
      session.send(pdu.response({ message_id: id }));
      if ((options.receipts ?? true) && (pdu.registered_delivery & 1)) {
        report(session.receives ? session : receivers.at(-1), pdu, id);
      }
    });
  });
  server.listen(0, '127.0.0.1', () => tell('listening', { port: server.address().port }));
}

function client() {
  const tls = options.ca ? { tls: true, ca: fs.readFileSync(options.ca) } : {};
  const count = options.count ?? 1;
  let delivered = 0;
  const session = smpp.connect({ host: '127.0.0.1', port: options.port, ...tls }, () => {
    session.socket.setNoDelay(true);
    session.bind_transceiver({ system_id: 'esme', password: 'secret' }, (bound) => {
      tell('bound', { system_id: bound.system_id, command_status: bound.command_status });
      for (let number = 0; number < count; number += 1) {
        session.submit_sm({
          source_addr: 'ACME',
          source_addr_ton: 5,
          dest_addr_ton: 1,
          dest_addr_npi: 1,
          destination_addr: '98912' + String(number).padStart(7, '0'),
          registered_delivery: 1,
          short_message: `hello ${number}`,
        }, (answer) => tell('submit', {
          message_id: answer.message_id,
          command_status: answer.command_status,
        }));
      }
    });
  });
  session.on('error', (error) => tell('error', { error: String(error) }));
  session.on('enquire_link', (pdu) => session.send(pdu.response()));
  session.on('deliver_sm', (pdu) => {
    session.send(pdu.response());
    tell('delivered', content(pdu));
    delivered += 1;
    if (delivered === count) {
      session.unbind(() => {
        tell('unbound');
        session.close();
      });
    }
  });
}

if (mode === 'smsc') smsc();
else client();
