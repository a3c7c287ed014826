// Packed arrays: base64 of a length and raw deflate (RFC 1951), inflated at once. The browser's own
// decompressor answers later, which would leave the page empty for a while.

const LENGTHS = extraTable(29, 3, i => i < 8 || i === 28 ? 0 : (i >> 2) - 1);
LENGTHS.base[28] = 258;
const DISTANCES = extraTable(30, 1, i => i < 4 ? 0 : (i >> 1) - 1);
const CODE_ORDER = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

function extraTable(count, first, bitsOf) {
  const base = [], extra = [];
  for (let i = 0; i < count; i++) {
    base.push(first);
    extra.push(bitsOf(i));
    first += 1 << extra[i];
  }
  return {base, extra};
}

const FAST = 9;  // bits looked up at once

// Canonical Huffman: a table of the short codes, and for the long ones how many codes each length
// has, and the symbols in the order of their codes.
function huffman(lengths) {
  const count = new Uint16Array(16), next = new Uint16Array(16), code = new Uint16Array(16);
  for (const length of lengths) count[length]++;
  count[0] = 0;
  for (let i = 1; i < 16; i++) {
    next[i] = next[i - 1] + count[i - 1];
    code[i] = (code[i - 1] + count[i - 1]) << 1;
  }
  const symbols = new Uint16Array(lengths.length), fast = new Uint16Array(1 << FAST);
  lengths.forEach((length, symbol) => {
    if (!length) return;
    symbols[next[length]++] = symbol;
    let place = 0, bits = code[length]++;
    if (length > FAST) return;
    for (let i = 0; i < length; i++, bits >>= 1) place = place << 1 | bits & 1;
    for (; place < fast.length; place += 1 << length) fast[place] = symbol << 4 | length;
  });
  return {count, symbols, fast};
}

function inflate(bytes, size) {
  const out = new Uint8Array(size);
  let at = 0, place = 0, hold = 0, held = 0;
  const bits = need => {
    while (held < need) {
      hold |= bytes[at++] << held;
      held += 8;
    }
    const value = hold & ((1 << need) - 1);
    hold >>>= need;
    held -= need;
    return value;
  };
  const symbol = ({count, symbols, fast}) => {
    while (held < FAST) {
      hold |= bytes[at++] << held;  // behind the end: zeros
      held += 8;
    }
    const found = fast[hold & ((1 << FAST) - 1)];
    if (found) {
      hold >>>= found & 15;
      held -= found & 15;
      return found >> 4;
    }
    let code = 0, first = 0, index = 0;
    for (let length = 1; length < 16; length++) {
      code |= bits(1);
      const here = count[length];
      if (code - first < here) return symbols[index + code - first];
      index += here;
      first = (first + here) << 1;
      code <<= 1;
    }
    throw new Error("a packed array is damaged");
  };
  const dynamic = () => {
    const literals = bits(5) + 257, distances = bits(5) + 1, codes = new Array(19).fill(0);
    for (let i = 0, n = bits(4) + 4; i < n; i++) codes[CODE_ORDER[i]] = bits(3);
    const code = huffman(codes), lengths = [];
    while (lengths.length < literals + distances) {
      const next = symbol(code);
      if (next < 16) {
        lengths.push(next);
        continue;
      }
      const value = next === 16 ? lengths[lengths.length - 1] : 0;
      let times = next === 16 ? 3 + bits(2) : next === 17 ? 3 + bits(3) : 11 + bits(7);
      while (times--) lengths.push(value);
    }
    return [huffman(lengths.slice(0, literals)), huffman(lengths.slice(literals))];
  };
  const fixed = () => [huffman(Array.from({length: 288}, (_, i) =>
    i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8)), huffman(new Array(30).fill(5))];
  let isLast = false;
  while (!isLast) {
    isLast = bits(1) === 1;
    const kind = bits(2);
    if (kind === 0) {
      at -= held >> 3;  // whole bytes that were looked at
      hold = held = 0;
      const length = bytes[at] | bytes[at + 1] << 8;
      out.set(bytes.subarray(at + 4, at + 4 + length), place);
      place += length;
      at += 4 + length;
      continue;
    }
    const [literals, distances] = kind === 1 ? fixed() : dynamic();
    for (let next = symbol(literals); next !== 256; next = symbol(literals)) {
      if (next < 256) {
        out[place++] = next;
        continue;
      }
      const length = LENGTHS.base[next - 257] + bits(LENGTHS.extra[next - 257]);
      const far = symbol(distances);
      const from = place - DISTANCES.base[far] - bits(DISTANCES.extra[far]);
      for (let i = 0; i < length; i++) out[place++] = out[from + i];
    }
  }
  return out;
}

function unpack(text) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  const size = new DataView(bytes.buffer).getUint32(0, true);
  return inflate(bytes.subarray(4), size);
}

// Numbers whose lowest bytes stand first, then all second ones, and so on.
function unpackPlanes(text, Kind) {
  const bytes = unpack(text), width = Kind.BYTES_PER_ELEMENT, count = bytes.length / width;
  const out = new Uint8Array(bytes.length);
  for (let i = 0; i < count; i++) {
    for (let plane = 0; plane < width; plane++) out[i * width + plane] = bytes[plane * count + i];
  }
  return new Kind(out.buffer);
}

// In place: each number was sent less the one before.
function sumUp(numbers) {
  for (let i = 1; i < numbers.length; i++) numbers[i] += numbers[i - 1];
  return numbers;
}
