"""MosaicML Streaming's MDS: `index` reads index.json, `columns` decodes values, `source` reads shards."""
